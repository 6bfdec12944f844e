"""DisentangledWhisper: speech in the codes and noise in what they leave over, inside a frozen Whisper."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel, WhisperForConditionalGeneration
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.models.whisper.modeling_whisper import sinusoids
from transformers.utils import ModelOutput

from ..configuration.configuration_disentangled_whisper import DisentangledWhisperConfig
from ..configuration.whisper_tokenizer import WhisperTokenizerConfig
from .latent_coding import Adapter, LatentDecoder, LatentEncoder, NoiseHead
from .vector_quantization import EMAVectorQuantizer
from .whisper_decoder import LengthAwareWhisperDecoder, SpeechToTextGenerationMixin
from .whisper_encoder import LengthAwareWhisperEncoder, SinusoidalPositions, subsample_mask
from .windowed_encoding import WindowedEncodingMixin

RETRAINABLE_FIELDS = ("codebook_decay", "dead_code_threshold")  # how a codebook moves on, not what was learnt


@dataclass
class DisentangledWhisperOutput(ModelOutput):
    """
    Speech taken apart. Frames are tokens (25 Hz), states are Whisper's frames (50 Hz).

    Args:
        last_hidden_state: `(batch, states, d_model)` that Whisper's decoder attends to; from the recognizer only.
        audio_codes: `(batch, frames)` int64 in `[0, codebook_size)`; `codebook_size` on padding.
        attention_mask: `(batch, frames)` boolean, True on real tokens.
        latents: `(batch, frames, codebook_dim)`, q_e(X) of eq. 1.
        quantized: `(batch, frames, codebook_dim)`, Q(q_e(X)), the clean speech, with straight-through gradients.
        residue: `(batch, frames, codebook_dim)`, R of eq. 2, the noise; 0 on padding.
        distances: `(batch, frames)`, L2 norm of the residue.
        noise_logits: `(batch, classes)`, eq. 7; None without a noise head.
        noise_features: `(batch, noise_head_dim)`, the head's penultimate layer; None without one.
    """

    last_hidden_state: torch.FloatTensor | None = None
    audio_codes: torch.LongTensor | None = None
    attention_mask: torch.BoolTensor | None = None
    latents: torch.FloatTensor | None = None
    quantized: torch.FloatTensor | None = None
    residue: torch.FloatTensor | None = None
    distances: torch.FloatTensor | None = None
    noise_logits: torch.FloatTensor | None = None
    noise_features: torch.FloatTensor | None = None


@dataclass
class DisentangledWhisperSeq2SeqOutput(Seq2SeqLMOutput):
    """`Seq2SeqLMOutput` with the bottleneck's output in `speech`, which the training losses need."""

    speech: DisentangledWhisperOutput | None = None


@dataclass
class DisentangledWhisperExplanation(ModelOutput):
    """
    Where a recording's content went.

    Args:
        audio_codes: `(batch, frames)` int64, the speech; `codebook_size` on padding.
        attention_mask: `(batch, frames)` boolean, True on real tokens.
        residue: `(batch, frames, codebook_dim)`, the noise; 0 on padding.
        distances: `(batch, frames)`, L2 norm of the residue: how far each frame lies from its code.
        noise_probabilities: `(batch, classes)` in the order of `config.noise_classes`; None without a noise head.
    """

    audio_codes: torch.LongTensor | None = None
    attention_mask: torch.BoolTensor | None = None
    residue: torch.FloatTensor | None = None
    distances: torch.FloatTensor | None = None
    noise_probabilities: torch.FloatTensor | None = None


class DisentangledWhisperPreTrainedModel(PreTrainedModel):
    """Weights, attention implementations and the frozen Whisper common to both classes."""

    config_class = DisentangledWhisperConfig
    base_model_prefix = "model"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["WhisperEncoderLayer", "MaskedWhisperDecoderLayer", "ConvTransformerBlock"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = {"quantizer"}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, SinusoidalPositions):
            init.copy_(module.weight, sinusoids(*module.weight.shape))
        elif isinstance(module, EMAVectorQuantizer):
            module.reset_codebook()

    frozen_modules: list[nn.Module]  # the parts that are Whisper's

    def freeze_whisper(self):
        """ "We freeze the Whisper encoder and decoder and train lightweight modules"."""
        for module in self.frozen_modules:
            module.requires_grad_(False)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """`PreTrainedModel.from_pretrained`, which makes new parameters; those of Whisper are frozen again."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if kwargs.get("output_loading_info") else loaded
        model.freeze_whisper()
        return loaded

    def train(self, mode: bool = True):
        """Training mode for the parts that train; the frozen ones stay as they are used, without dropout."""
        super().train(mode)
        for module in self.frozen_modules:
            module.eval()
        return self


class DisentangledWhisperModel(WindowedEncodingMixin, DisentangledWhisperPreTrainedModel):
    """
    The tokenizer: log-mel features to codes and residue (sections II-A and II-B).

    Whisper's encoder, latent encoder, vector quantizer, noise head. Loads from the same folder as
    `DisentangledWhisperForConditionalGeneration`, of which it reads this part.
    """

    _keys_to_ignore_on_load_unexpected = [r"^latent_decoder\.", r"^adapter\.", r"^decoder\.", r"^proj_out\."]
    token_outputs = ("audio_codes", "attention_mask", "latents", "quantized", "residue", "distances")

    def __init__(self, config: DisentangledWhisperConfig):
        super().__init__(config)
        self.encoder = LengthAwareWhisperEncoder(config)
        if config.bottleneck == "quantizer":
            self.latent_encoder = LatentEncoder(config)
            self.quantizer = EMAVectorQuantizer(
                config.codebook_size,
                config.codebook_dim,
                config.codebook_decay,
                config.codebook_distance,
                config.dead_code_threshold,
            )
            if config.noise_labels:
                self.noise_head = NoiseHead(config)
        self.post_init()
        self.freeze_whisper()

    @property
    def frozen_modules(self) -> list[nn.Module]:
        return [self.encoder]

    @property
    def padding_code(self) -> int:
        return self.config.padding_code

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.conv1

    @torch.no_grad()
    def encoder_states(self, input_features: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """W(X): the frozen encoder's `(batch, states, d_model)` of features `(batch, mel bins, mel frames)`."""
        return self.encoder(input_features, attention_mask).last_hidden_state

    def disentangle(self, states: Tensor, mask: Tensor) -> DisentangledWhisperOutput:
        """
        Eq. 1, 2 and 7 on the encoder's states `(batch, states, d_model)` under `(batch, states)`, True on real ones.

        Raises:
            ValueError: this model has no quantizer.
        """
        if self.config.bottleneck != "quantizer":
            raise ValueError(
                f"a model with bottleneck={self.config.bottleneck!r} has no tokens and no residue; only "
                'bottleneck="quantizer" has.'
            )
        latents, mask = self.latent_encoder(states, mask)
        coded = self.quantizer(latents, mask)
        residue = (latents.float() - coded.chosen) * mask.unsqueeze(-1)  # no gradient to the codes: averages
        output = DisentangledWhisperOutput(
            audio_codes=coded.codes,
            attention_mask=mask,
            latents=latents,
            quantized=coded.quantized,
            residue=residue,
            distances=coded.distances * mask,
        )
        if self.config.noise_labels:
            output.noise_logits, output.noise_features = self.noise_head(residue.to(latents.dtype), mask)
        return output

    def forward(
        self, input_features: Tensor, attention_mask: Tensor | None = None, **kwargs
    ) -> DisentangledWhisperOutput:
        """
        Take apart audio that fits the position table; see `encode` for any length.

        Args:
            input_features: `(batch, mel bins, mel frames)`, 10 ms per frame.
            attention_mask: `(batch, mel frames)`, 1 on real frames; all real when None.

        Raises:
            ValueError: bad shapes or more than 30 s (see the encoder), or a model without a quantizer.
        """
        states = self.encoder_states(input_features, attention_mask)
        if attention_mask is None:
            attention_mask = torch.ones(input_features.shape[::2], dtype=torch.bool, device=states.device)
        return self.disentangle(states, subsample_mask(attention_mask.bool(), 2))

    @torch.no_grad()
    def explain(self, input_features: Tensor, attention_mask: Tensor | None = None) -> DisentangledWhisperExplanation:
        """
        What was said and what was heard around it: arguments and errors as in `forward`. More than 30 s are refused:
        the noise of one posterior should be the noise of one scene.
        """
        output = self(input_features, attention_mask)
        logits, shared = output.noise_logits, ("audio_codes", "attention_mask", "residue", "distances")
        probabilities = None if logits is None else logits.float().softmax(dim=-1)
        return DisentangledWhisperExplanation(
            **{name: output[name] for name in shared}, noise_probabilities=probabilities
        )

    def embed_codes(self, audio_codes: Tensor) -> Tensor:
        """
        Code vectors `(batch, frames, codebook_dim)` of tokens `(batch, frames)`, padding included.

        Raises:
            ValueError: an id outside the codebook.
        """
        return self.quantizer.embed(audio_codes)


class DisentangledWhisperForConditionalGeneration(SpeechToTextGenerationMixin, DisentangledWhisperPreTrainedModel):
    """
    The tokenizer inside its recognizer: codes go through the latent decoder to Whisper's decoder (section II-C).

    This is the model that is trained; the losses beside cross-entropy are the trainer's. `config.bottleneck` makes it
    one of Table I's baselines instead: an adapter in place of the quantizer, or Whisper as it is.
    """

    _tied_weights_keys = {"proj_out.weight": "decoder.embed_tokens.weight"}
    _can_compile_fullgraph = False
    mel_frames_per_state = 2

    def __init__(self, config: DisentangledWhisperConfig):
        super().__init__(config)
        self.model = DisentangledWhisperModel(config)
        if config.bottleneck == "quantizer":
            self.latent_decoder = LatentDecoder(config)
        elif config.bottleneck == "adapter":
            self.adapter = Adapter(config)
        self.decoder = LengthAwareWhisperDecoder(config)
        self.proj_out = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()
        self.freeze_whisper()

    @property
    def frozen_modules(self) -> list[nn.Module]:
        return [self.model.encoder, self.decoder, self.proj_out]

    @classmethod
    def from_whisper(
        cls, base_model: str, latent_model: str | None = None, **config_overrides
    ) -> "DisentangledWhisperForConditionalGeneration":
        """
        Encoder and decoder of a Whisper checkpoint (folder or Hub id), frozen, with new modules between them.

        Args:
            latent_model: folder or Hub id of a DisentangledWhisper whose trained modules are taken over, to go on with
                them, or to put them into another Whisper of the same width. Its configuration comes with them.
            config_overrides: fields of `DisentangledWhisperConfig`, for example `codebook_size=512`.

        Raises:
            ValueError: the checkpoint is no Whisper's, `latent_model` no DisentangledWhisper, only its tokenizer, of
                other shapes, or trained with another value of an overridden field.
        """
        fields = latent_fields(latent_model) if latent_model else {}
        for name in sorted(fields.keys() & config_overrides.keys() - set(RETRAINABLE_FIELDS)):
            if fields[name] != config_overrides[name]:
                asked, known = config_overrides[name], fields[name]
                raise ValueError(f"{name}={asked!r} contradicts {latent_model}, which has {name}={known!r}: leave it.")
        base_config = AutoConfig.from_pretrained(base_model)
        config = DisentangledWhisperConfig.from_whisper(base_config, **{**fields, **config_overrides})
        whisper = WhisperForConditionalGeneration.from_pretrained(base_model, dtype=torch.float32)
        model = cls(config)
        model.load_whisper_weights(whisper)
        if latent_model:
            source, report = cls.from_pretrained(latent_model, dtype=torch.float32, output_loading_info=True)
            if missing := sorted(report["missing_keys"]):
                raise ValueError(f"{latent_model} lacks {len(missing)} weights, {missing[0]} ...: give a whole model.")
            model.load_latent_weights(source)
        model.generation_config = deepcopy(whisper.generation_config)
        model.generation_config.num_beams = 10  # "autoregressive decoding with a beam-size of 10"
        return model

    @torch.no_grad()
    def load_whisper_weights(self, whisper: WhisperForConditionalGeneration):
        """Copy every Whisper weight to its place; the shapes must agree."""
        self.model.encoder.load_state_dict(whisper.model.encoder.state_dict())
        self.decoder.load_state_dict(whisper.model.decoder.state_dict())
        self.proj_out.load_state_dict(whisper.proj_out.state_dict())

    @torch.no_grad()
    def load_latent_weights(self, other: "DisentangledWhisperForConditionalGeneration"):
        """
        Take over everything that is not Whisper's from another DisentangledWhisper.

        Raises:
            ValueError: width or shape differ.
        """
        if other.config.d_model != self.config.d_model:
            raise ValueError(
                f"the saved latent modules are for a Whisper of width {other.config.d_model}, the base has "
                f"{self.config.d_model}: take a base of the same width."
            )
        whisper = ("model.encoder.", "decoder.", "proj_out.")
        weights = {name: value for name, value in other.state_dict().items() if not name.startswith(whisper)}
        mine = {name: value.shape for name, value in self.state_dict().items() if not name.startswith(whisper)}
        theirs = {name: value.shape for name, value in weights.items()}
        if mine != theirs:
            differing = sorted(name for name in mine | theirs if mine.get(name) != theirs.get(name))
            raise ValueError(f"the saved latent modules have other shapes than asked for: {', '.join(differing[:5])}.")
        self.load_state_dict(weights, strict=False)

    def encode_speech(
        self,
        input_features: Tensor | None,
        attention_mask: Tensor | None = None,
        encoder_states: Tensor | None = None,
    ) -> DisentangledWhisperOutput:
        """
        The bottleneck's output and, in `last_hidden_state`, `(batch, states, d_model)` that the decoder attends to.

        encoder_states: W(X) `(batch, states, d_model)`, kept from an earlier pass, in place of `input_features`.
        """
        if encoder_states is None:
            encoder_states = self.model.encoder_states(input_features, attention_mask)
        mask = self.state_mask(encoder_states, attention_mask)
        if self.config.bottleneck == "none":
            return DisentangledWhisperOutput(last_hidden_state=encoder_states)
        if self.config.bottleneck == "adapter":
            return DisentangledWhisperOutput(last_hidden_state=self.adapter(encoder_states))
        speech = self.model.disentangle(encoder_states, mask)
        speech.last_hidden_state = self.latent_decoder(speech.quantized, mask, encoder_states.shape[1])
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
        encoder_states: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> DisentangledWhisperSeq2SeqOutput:
        """
        Args:
            input_features: `(batch, mel bins, mel frames)`; attention_mask: `(batch, mel frames)`, 1 on real frames.
            decoder_input_ids: `(batch, tokens)`; made from `labels` when None.
            labels: `(batch, tokens)`, -100 on padding; with them `loss` is eq. 4, cross-entropy in nats.
            encoder_states: see `encode_speech`.
            num_items_in_batch: divisor of the summed cross-entropy; the number of labels in this batch when None.
        """
        speech = None
        if encoder_outputs is None:
            encoder_outputs = speech = self.encode_speech(input_features, attention_mask, encoder_states)
        cache = {"past_key_values": past_key_values, "use_cache": use_cache}
        decoded = self.decode(encoder_outputs.last_hidden_state, attention_mask, decoder_input_ids, labels, **cache)
        loss = None
        if labels is not None:  # nothing to shift: the decoder's inputs are
            divisor = {"num_items_in_batch": num_items_in_batch}
            loss = self.loss_function(decoded.logits, None, self.config.vocab_size, shift_labels=labels, **divisor)
        return DisentangledWhisperSeq2SeqOutput(**{**decoded, "loss": loss, "speech": speech})

    def explain(self, input_features: Tensor, attention_mask: Tensor | None = None) -> DisentangledWhisperExplanation:
        """See `DisentangledWhisperModel.explain`."""
        return self.model.explain(input_features, attention_mask)


def latent_fields(latent_model: str) -> dict:
    """
    What a saved DisentangledWhisper's configuration says beyond its Whisper's.

    Raises:
        ValueError: it is the configuration of something else.
    """
    config = AutoConfig.from_pretrained(latent_model)
    if config.model_type != "disentangled_whisper":
        raise ValueError(f"{latent_model} is a {config.model_type!r} model; expected 'disentangled_whisper'.")
    own = DisentangledWhisperConfig().to_dict().keys() - WhisperTokenizerConfig().to_dict().keys()
    return {name: value for name, value in config.to_dict().items() if name in own}
