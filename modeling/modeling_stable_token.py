"""StableToken: a speech tokenizer that keeps its tokens when noise is added."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, WhisperForConditionalGeneration
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer, sinusoids
from transformers.utils import ModelOutput

from ..configuration.configuration_stable_token import StableTokenConfig
from .quantization import VotingLFQ, codes_to_bits
from .whisper_decoder import LengthAwareWhisperDecoder, SpeechToTextGenerationMixin
from .whisper_encoder import LengthAwareWhisperEncoder, SinusoidalPositions, masked_mean_pool
from .windowed_encoding import WindowedEncodingMixin

PADDING_CODE = -1  # what `encode` writes behind the end of a shorter utterance; no token has this id


@dataclass
class StableTokenOutput(ModelOutput):
    """
    Quantized speech.

    Args:
        last_hidden_state: `(batch, frames, dim)` quantized states at the token rate.
        audio_codes: `(batch, frames)` int64 in `[0, 2**num_bits)`; -1 on padding.
        attention_mask: `(batch, frames)` boolean, True on real tokens.
        votes: `(batch, frames, bits)` mean vote per bit in [-1, 1]; its magnitude is the bit's confidence.
        projections: `(voters, batch, frames, bits)` values before binarization; None from `encode`.
    """

    last_hidden_state: torch.FloatTensor | None = None
    audio_codes: torch.LongTensor | None = None
    attention_mask: torch.BoolTensor | None = None
    votes: torch.FloatTensor | None = None
    projections: torch.FloatTensor | None = None


@dataclass
class StableTokenSeq2SeqOutput(Seq2SeqLMOutput):
    """`Seq2SeqLMOutput` with the tokenizer's output in `speech`, which the training losses need."""

    speech: StableTokenOutput | None = None


class StableTokenPreTrainedModel(PreTrainedModel):
    """Weights, attention implementations and checkpointing common to both StableToken classes."""

    config_class = StableTokenConfig
    base_model_prefix = "model"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["WhisperEncoderLayer", "MaskedWhisperDecoderLayer"]
    _supports_flash_attn = True
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, SinusoidalPositions):
            init.copy_(module.weight, sinusoids(*module.weight.shape))


class StableTokenModel(WindowedEncodingMixin, StableTokenPreTrainedModel):
    """
    The tokenizer: log-mel features to tokens (StableToken, sections 2.1-2.2).

    Lower half of Whisper's encoder, average pooling to the token rate, voting quantizer. Loads from the same folder as
    `StableTokenForConditionalGeneration`, of which it reads the lower half.
    """

    _keys_to_ignore_on_load_unexpected = [r"^upper_", r"^decoder\.", r"^proj_out\."]
    token_outputs = ("audio_codes", "attention_mask", "votes", "last_hidden_state")
    padding_code = PADDING_CODE

    def __init__(self, config: StableTokenConfig):
        super().__init__(config)
        lower_config = deepcopy(config)
        lower_config.encoder_layers = config.quantize_position
        self.encoder = LengthAwareWhisperEncoder(lower_config)
        self.encoder.layer_norm = nn.Identity()  # Whisper's final norm belongs to the upper layers
        self.quantizer = VotingLFQ(
            config.d_model, config.num_bits, config.num_voters, config.use_projection_bias, config.use_output_bias
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.conv1

    def pooled_states(self, input_features: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """States before quantization `(batch, frames, dim)` and their mask, at the token rate."""
        hidden_states, mask = self.encoder.embed(input_features, attention_mask)
        hidden_states = self.encoder.run_layers(self.encoder.layers, hidden_states, mask)
        return masked_mean_pool(hidden_states, mask, self.config.pooling_size)

    def forward(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        perturbed_input_features: Tensor | None = None,
        noisy_voters: Tensor | None = None,
        **kwargs,
    ) -> StableTokenOutput:
        """
        Tokenize audio that fits the position table; see `encode` for any length.

        Args:
            input_features: `(batch, mel bins, mel frames)`, 10 ms per frame.
            attention_mask: `(batch, mel frames)`, 1 on real frames; all real when None.
            perturbed_input_features: a noisy view of the same utterances, same shape (training, section 2.3).
            noisy_voters: `(voters,)` boolean, the voters that see that view; required with it.

        Raises:
            ValueError: only one of the two training arguments, views of two shapes, or bad shapes (see the encoder).
        """
        if perturbed_input_features is None:
            if noisy_voters is not None:
                raise ValueError("noisy_voters needs perturbed_input_features.")
            pooled, mask = self.pooled_states(input_features, attention_mask)
            quantized = self.quantizer(pooled)
        else:
            pooled, mask = self._both_views(input_features, attention_mask, perturbed_input_features, noisy_voters)
            clean, noisy = pooled.chunk(2)
            mask = mask.chunk(2)[0]
            quantized = self.quantizer(clean, noisy, noisy_voters)
        return StableTokenOutput(
            last_hidden_state=quantized.quantized,
            audio_codes=quantized.codes.masked_fill(~mask, PADDING_CODE),
            attention_mask=mask,
            votes=quantized.scores,
            projections=quantized.projections,
        )

    def _both_views(
        self, input_features: Tensor, attention_mask: Tensor | None, perturbed: Tensor, noisy_voters: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Clean and perturbed view through the layers as one batch of twice the size."""
        if noisy_voters is None or noisy_voters.shape != (self.config.num_voters,):
            shape = None if noisy_voters is None else tuple(noisy_voters.shape)
            raise ValueError(f"noisy_voters must have shape ({self.config.num_voters},); got {shape}.")
        if perturbed.shape != input_features.shape:
            raise ValueError(
                f"both views must have one shape; got {tuple(input_features.shape)} and {tuple(perturbed.shape)}."
            )
        mask = None if attention_mask is None else torch.cat([attention_mask, attention_mask])
        return self.pooled_states(torch.cat([input_features, perturbed]), mask)

    def embed_codes(self, audio_codes: Tensor) -> Tensor:
        """
        Continuous states `(batch, frames, dim)` of tokens `(batch, frames)`, as the upper layers read them.

        Raises:
            ValueError: an id outside the codebook (padding included).
        """
        return self.quantizer.embed_bits(codes_to_bits(audio_codes, self.config.num_bits))


class StableTokenForConditionalGeneration(SpeechToTextGenerationMixin, StableTokenPreTrainedModel):
    """
    The tokenizer inside its recognizer: tokens go through the upper encoder layers and Whisper's decoder to text.

    This is the model that is trained (StableToken, sections 2.1 and 2.3); the losses beside cross-entropy are the
    trainer's. As in GLM-4-Voice the upper layers run at the token rate: nothing is un-pooled.
    """

    _tied_weights_keys = {"proj_out.weight": "decoder.embed_tokens.weight"}
    _can_compile_fullgraph = False

    def __init__(self, config: StableTokenConfig):
        super().__init__(config)
        self.model = StableTokenModel(config)
        if config.reinject_positions:
            self.upper_positions = SinusoidalPositions(config.max_source_tokens, config.d_model)
        self.upper_layers = nn.ModuleList(
            WhisperEncoderLayer(config) for _ in range(config.encoder_layers - config.quantize_position)
        )
        self.upper_norm = nn.LayerNorm(config.d_model)
        self.decoder = LengthAwareWhisperDecoder(config)
        self.proj_out = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    @property
    def mel_frames_per_state(self) -> int:
        return self.config.mel_frames_per_token

    @classmethod
    def from_whisper(cls, base_model: str, **config_overrides) -> "StableTokenForConditionalGeneration":
        """
        A StableToken with encoder and decoder of a Whisper checkpoint (folder or Hub id); the quantizer is new.

        Args:
            config_overrides: fields of `StableTokenConfig`, for example `num_voters=7`.

        Raises:
            ValueError: the checkpoint is not a Whisper's.
        """
        from transformers import AutoConfig

        config = StableTokenConfig.from_whisper(AutoConfig.from_pretrained(base_model), **config_overrides)
        whisper = WhisperForConditionalGeneration.from_pretrained(base_model, dtype=torch.float32)
        model = cls(config)
        model.load_whisper_weights(whisper)
        model.generation_config = deepcopy(whisper.generation_config)
        return model

    @torch.no_grad()
    def load_whisper_weights(self, whisper: WhisperForConditionalGeneration):
        """Copy every Whisper weight to its place below or above the quantizer; the shapes must agree."""
        encoder, split = whisper.model.encoder, self.config.quantize_position
        lower = {name: value for name, value in encoder.state_dict().items() if not name.startswith("layer")}
        self.model.encoder.load_state_dict(lower, strict=False)
        self.model.encoder.layers.load_state_dict(encoder.layers[:split].state_dict())
        self.upper_layers.load_state_dict(encoder.layers[split:].state_dict())
        self.upper_norm.load_state_dict(encoder.layer_norm.state_dict())
        self.decoder.load_state_dict(whisper.model.decoder.state_dict())
        self.proj_out.load_state_dict(whisper.proj_out.state_dict())
        if self.config.reinject_positions:  # "initialised from the first rows", as in GLM-4-Voice
            self.upper_positions.weight.copy_(encoder.embed_positions.weight[: self.config.max_source_tokens])

    def encode_speech(
        self, input_features: Tensor, attention_mask: Tensor | None = None, **training_views
    ) -> StableTokenOutput:
        """Tokens and, in `last_hidden_state`, the states `(batch, frames, dim)` that the decoder attends to."""
        speech = self.model(input_features, attention_mask, **training_views)
        hidden_states = speech.last_hidden_state
        if self.config.reinject_positions:
            hidden_states = hidden_states + self.upper_positions.weight[: hidden_states.shape[1]]
        hidden_states = self.model.encoder.run_layers(self.upper_layers, hidden_states, speech.attention_mask)
        speech.last_hidden_state = self.upper_norm(hidden_states)
        return speech

    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        past_key_values=None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        perturbed_input_features: Tensor | None = None,
        noisy_voters: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> StableTokenSeq2SeqOutput:
        """
        Args:
            input_features: `(batch, mel bins, mel frames)`; attention_mask: `(batch, mel frames)`, 1 on real frames.
            decoder_input_ids: `(batch, tokens)`; made from `labels` when None.
            labels: `(batch, tokens)`, -100 on padding; with them `loss` is the recognizer's cross-entropy in nats.
            perturbed_input_features, noisy_voters: see `StableTokenModel.forward`.
            num_items_in_batch: divisor of the summed cross-entropy; the number of labels in this batch when None.
        """
        speech = None
        if encoder_outputs is None:
            views = {"perturbed_input_features": perturbed_input_features, "noisy_voters": noisy_voters}
            encoder_outputs = speech = self.encode_speech(input_features, attention_mask, **views)
        cache = {"past_key_values": past_key_values, "use_cache": use_cache}
        decoded = self.decode(encoder_outputs.last_hidden_state, attention_mask, decoder_input_ids, labels, **cache)
        loss = None
        if labels is not None:  # nothing to shift: the decoder's inputs are
            divisor = {"num_items_in_batch": num_items_in_batch}
            loss = self.loss_function(decoded.logits, None, self.config.vocab_size, shift_labels=labels, **divisor)
        return StableTokenSeq2SeqOutput(**{**decoded, "loss": loss, "speech": speech})
