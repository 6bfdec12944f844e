"""FactoredASR: a speech encoder's frames as content, which is recognized, and context, which is not."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, GenerationConfig, PreTrainedModel
from transformers import initialization as init
from transformers.loss.loss_rnnt import rnnt_loss
from transformers.models.parakeet.generation_parakeet import ParakeetRNNTGenerationMixin
from transformers.models.parakeet.modeling_parakeet import (
    ParakeetEncoderModelOutput,
    ParakeetRNNTDecoder,
    ParakeetRNNTJointNetwork,
    ParakeetRNNTOutput,
)
from transformers.utils import ModelOutput

from ..configuration.configuration_factored_asr import FactoredASRConfig
from .conformer import reset_positions
from .factor_networks import CyclicReconstruction, FactorNetwork, MultilayerPerceptron, normalize_frames
from .frame_encoders import FrameEncoder
from .transducer_search import beam_search


@dataclass
class FactoredSpeech(ModelOutput):
    """
    Args:
        content: `(batch, frames, factor_dim)`, what the transducer reads; without factors the encoder's states,
            normalized alike.
        context: `(batch, frames, factor_dim)`, background and speaker; None without factors.
        last_hidden_state: `(batch, frames, hidden_size)`, the encoder's states.
        attention_mask: `(batch, frames)` boolean, True on real frames.
    """

    content: torch.FloatTensor | None = None
    context: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    attention_mask: torch.BoolTensor | None = None


@dataclass
class FactoredASROutput(ParakeetRNNTOutput):
    """
    `ParakeetRNNTOutput`: `logits` `(batch, frames, labels + 1, vocabulary)`, and

    Args:
        speech: the factors.
        reconstructions: content, context `(batch, frames, factor_dim)` and input frames `(batch, frames, frame_size)`
            as the reconstructors of eq. 1 have them; None unless asked for.
        frames: the input frames `(batch, frames, frame_size)` before any masking, for the last of these.
        frame_logits: `(batch, frames, vocabulary)`, what the joint network makes of each frame alone; None unless
            asked for.
    """

    speech: FactoredSpeech | None = None
    reconstructions: tuple[torch.FloatTensor, ...] | None = None
    frames: torch.FloatTensor | None = None
    frame_logits: torch.FloatTensor | None = None


class FactoredASRForRNNT(PreTrainedModel, ParakeetRNNTGenerationMixin):
    """
    Content-Context Factorized Representations for Automated Speech Recognition (Chan and Ghosh, section 2, Figs. 1
    and 2).

    encoder states e_i -> Pi_content(e_i), Pi_context(e_i); a transducer ("the standard joint-model ASR loss", with
    Transformers' Parakeet blocks) reads the content. The reconstructors of eq. 1 run in training only.

    Deviations: in place of batch normalization, factor networks and Conformer normalize frames (see `FactorNetwork`
    and `ConformerLayers`); states that no factor network reads are normalized alike, so that nothing but the factors
    tells a model without them from one with them. The prediction network has no dropout, as Transformers' has none,
    where the paper has 0.1 throughout.
    """

    config_class = FactoredASRConfig
    base_model_prefix = "frame_encoder"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["ParakeetEncoderBlock", "ParakeetRNNTDecoder"]

    def __init__(self, config: FactoredASRConfig):
        super().__init__(config)
        self.main_input_name = "input_values" if config.reads_waveforms else "input_features"
        self.max_symbols_per_step = config.max_symbols_per_step  # where the generation mixin looks for it
        self.frame_encoder = FrameEncoder(config.encoder_config)
        if config.factorize:
            shape = (config.factor_hidden_size, config.factor_dim, config.num_factor_layers, config.dropout)
            self.content_network = FactorNetwork(config.encoder_config.hidden_size, *shape)
            self.context_network = FactorNetwork(config.encoder_config.hidden_size, *shape)
            self.reconstruction = CyclicReconstruction(
                config.factor_dim,
                self.frame_encoder.frame_size,
                config.factor_hidden_size,
                config.num_factor_layers,
                config.dropout,
            )
        self.encoder_projector = nn.Linear(config.content_size, config.decoder_hidden_size)
        self.decoder = ParakeetRNNTDecoder(config)
        self.joint = ParakeetRNNTJointNetwork(config)
        self.post_init()
        self.generation_config = GenerationConfig(
            decoder_start_token_id=config.blank_token_id, pad_token_id=config.pad_token_id
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """
        Xavier for matrices, He's in front of ReLUs, PyTorch's own ranges for convolutions and LSTMs: the small values
        of language models would leave nothing of a frame behind several layers without normalization, or too little
        to normalize.
        """
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv1d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        elif isinstance(module, nn.LSTM):
            bound = 1.0 / math.sqrt(module.hidden_size)
            for weight in module.parameters():
                init.uniform_(weight, -bound, bound)
        elif isinstance(module, MultilayerPerceptron):
            for layer in module.hidden_layers:  # Xavier's would lose half of the power in each ReLU
                init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        reset_positions(module)

    @classmethod
    def from_encoder(cls, encoder: str, **fields: Any) -> "FactoredASRForRNNT":
        """
        A new model on a pretrained encoder.

        Args:
            encoder: folder or Hub id of a Whisper, Parakeet (whole or its encoder), wav2vec 2.0, HuBERT or WavLM.
            fields: of `FactoredASRConfig`.

        Raises:
            StrictDataclassClassValidationError (of huggingface_hub): another kind of model.
        """
        encoder_config = AutoConfig.from_pretrained(encoder)
        if "encoder_config" in encoder_config.sub_configs:  # of a whole Parakeet
            encoder_config = encoder_config.encoder_config
        encoder_config.name_or_path = ""  # which would be a folder of this machine
        model = cls(FactoredASRConfig(encoder_config=encoder_config, **fields))
        source = AutoModel.from_pretrained(encoder, dtype=torch.float32)
        if type(source) is not type(model.frame_encoder.encoder):  # whole Whispers and Parakeets
            source = source.get_encoder()
        model.frame_encoder.encoder.load_state_dict(source.state_dict())
        return model

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.embedding

    def factors(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        masked_frames: Tensor | None = None,
    ) -> FactoredSpeech:
        """
        Content and context of each frame.

        Args:
            input_features: `(batch, frames, size)`, for a Whisper `(batch, mel bins, frames)`.
            input_values: `(batch, samples)` at 16 kHz, for encoders of waveforms.
            attention_mask: `(batch, frames or samples)`, 1 on real ones; all real when None.
            masked_frames: `(batch, states)`, True where the encoder does without the input frame (section 2.3).

        Raises:
            ValueError: the other kind of input, wrong shapes, no utterance, and utterances that are empty or too short
                for a single state.
        """
        inputs = self.given_inputs(input_features, input_values)
        states, mask = self.frame_encoder(inputs, attention_mask, masked_frames)
        context = self.context_network(states) if self.config.factorize else None
        return FactoredSpeech(
            content=self.content(states), context=context, last_hidden_state=states, attention_mask=mask
        )

    def content(self, states: Tensor) -> Tensor:
        """What the transducer reads `(batch, frames, content_size)` of the encoder's states."""
        return self.content_network(states) if self.config.factorize else normalize_frames(states)

    def given_inputs(self, input_features: Tensor | None, input_values: Tensor | None) -> Tensor:
        """The one of both that the encoder reads. Raises ValueError when it is missing."""
        inputs = input_values if self.config.reads_waveforms else input_features
        if inputs is None:
            raise ValueError(
                f"a {self.config.encoder_config.model_type} encoder takes {self.main_input_name}: use the feature "
                "extractor saved with this model."
            )
        return inputs

    def state_mask(self, attention_mask: Tensor) -> Tensor:
        """`(batch, states)`, True on real states, from a mask of the inputs `(batch, frames or samples)`."""
        return self.frame_encoder.state_mask(attention_mask)

    def get_audio_features(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        **kwargs: Any,
    ) -> ParakeetEncoderModelOutput:
        """What the generation mixin asks for: the transducer's view of the speech, as `pooler_output`."""
        inputs = input_features if input_values is None else input_values  # the mixin calls any of them features
        states, mask = self.frame_encoder(inputs, attention_mask)
        projected = self.encoder_projector(self.content(states))  # the context network costs nothing at inference
        return ParakeetEncoderModelOutput(last_hidden_state=states, pooler_output=projected, attention_mask=mask)

    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        labels: Tensor | None = None,
        masked_frames: Tensor | None = None,
        frames: Tensor | None = None,
        reversal_weight: float | None = None,
        return_loss: bool = True,
        return_frame_logits: bool = False,
        decoder_input_ids: Tensor | None = None,
        decoder_cache: Any = None,
        encoder_outputs: ParakeetEncoderModelOutput | None = None,
        **kwargs: Any,
    ) -> FactoredASROutput:
        """
        Args:
            input_features, input_values, attention_mask, masked_frames: see `factors`.
            labels: `(batch, tokens)`, -100 on padding. The decoder reads blank and then these.
            frames: `(batch, states, frame_size)`, the input frames before any masking; those of the inputs when None.
            reversal_weight: run the reconstructors of eq. 1, and reverse their gradients with this weight.
            return_loss: the transducer's, where there are labels: in nats per label of this batch. All of eq. 3 is
                `FactoredASRTrainer`'s.
            return_frame_logits: also what the joint network says without the prediction network, for CTC.
            decoder_input_ids, decoder_cache, encoder_outputs: of one step of greedy search.

        Returns logits `(batch, frames, tokens + 1, vocabulary)` and the loss.

        Raises:
            ValueError: what `factors` raises, and reconstructions of a model without factors.
        """
        if encoder_outputs is not None:
            return self._step(encoder_outputs, decoder_input_ids, decoder_cache)
        if reversal_weight is not None and not self.config.factorize:
            raise ValueError("a model with factorize=False has no factors to reconstruct: leave out reversal_weight.")
        speech = self.factors(input_features, attention_mask, input_values, masked_frames)
        output = FactoredASROutput(speech=speech, last_hidden_state=speech.last_hidden_state)
        if labels is not None:
            previous = nn.functional.pad(labels, (1, 0), value=self.config.blank_token_id)
            decoded = self.decoder(previous.masked_fill(previous == -100, self.config.pad_token_id))
            projected = self.encoder_projector(speech.content)
            output.logits = self.joint(decoded[:, None], projected[:, :, None])
            if return_frame_logits:
                output.frame_logits = self.joint(projected.new_zeros(()), projected)
            if return_loss:
                frames_of, labels_of = speech.attention_mask.sum(dim=1), labels.ne(-100).sum(dim=1)
                longest, most = int(frames_of.max()), int(labels_of.max())  # the kernel refuses padding beyond them
                lattice, targets = output.logits[:, :longest, : most + 1], labels[:, :most].clamp_min(0)
                output.loss = rnnt_loss(lattice, targets, frames_of, labels_of, self.config.blank_token_id)
        if reversal_weight is not None:
            inputs = self.given_inputs(input_features, input_values)
            output.frames = self.frame_encoder.input_frames(inputs, attention_mask) if frames is None else frames
            output.reconstructions = self.reconstruction(speech.content, speech.context, reversal_weight)
        return output

    def _step(self, encoder_outputs, decoder_input_ids: Tensor, decoder_cache: Any) -> FactoredASROutput:
        """Logits `(batch, 1, vocabulary)` at each utterance's own frame `(batch, 1, decoder_hidden_size)`."""
        decoded = self.decoder(decoder_input_ids, cache=decoder_cache)
        logits = self.joint(decoded[:, None], encoder_outputs.pooler_output[:, :, None]).squeeze(2)
        return FactoredASROutput(logits=logits, decoder_cache=decoder_cache)

    @torch.no_grad()
    def generate(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        num_beams: int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """
        Transcribe: ids `(batch, tokens)` without blanks, `pad_token_id` behind the end. An utterance has the same text
        alone and in any batch.

        Args:
            num_beams: 1 for greedy search, Transformers' own; else the width of torchaudio's beam search.
            kwargs: further options of `GenerationMixin.generate`, for greedy search.

        Raises:
            ValueError: options that beam search does not have, more beams than the vocabulary has tokens, or
                `return_dict_in_generate`: there is nothing but ids to return.
        """
        inputs = self.given_inputs(input_features, input_values)
        generation_config = kwargs.get("generation_config") or self.generation_config
        num_beams = generation_config.num_beams if num_beams is None else num_beams
        if kwargs.pop("return_dict_in_generate", False):
            raise ValueError("return_dict_in_generate is True, but a transducer's search returns ids alone.")
        if (num_beams or 1) > 1:
            foreign = kwargs.keys() - {"generation_config"}
            if foreign:
                raise ValueError(f"Beam search of a transducer has no {', '.join(sorted(foreign))}: leave it out.")
            if num_beams >= self.config.vocab_size:
                raise ValueError(
                    f"num_beams must be below the vocabulary's {self.config.vocab_size}; got {num_beams}."
                )
            rows = self._search_beams(inputs, attention_mask, num_beams)
        else:
            rows = self._search_greedily(inputs, attention_mask, kwargs)
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.config.pad_token_id)

    def _search_greedily(self, inputs: Tensor, attention_mask: Tensor | None, options: dict) -> list[Tensor]:
        """Ids `(tokens,)` of each utterance."""
        mask = self.state_mask(self.frame_encoder.check(inputs, attention_mask))
        # each frame gives at most so many symbols, and then a blank
        options.setdefault("max_new_tokens", mask.shape[1] * (self.max_symbols_per_step + 1))
        if attention_mask is not None:
            options["attention_mask"] = attention_mask
        found = super().generate(inputs, num_beams=1, do_sample=False, **options)
        tokens, steps = found.sequences[:, 1:], found.durations[:, 1:]
        frame_of = steps.cumsum(dim=1) - steps  # which frame each was written at
        # an utterance that has ended goes on with the others of its batch, at its last frame
        written = (tokens != self.config.blank_token_id) & (frame_of < mask.sum(dim=1, keepdim=True))
        return [row[kept] for row, kept in zip(tokens, written)]

    def _search_beams(self, inputs: Tensor, attention_mask: Tensor | None, num_beams: int) -> list[Tensor]:
        """Ids `(tokens,)` of each utterance."""
        speech = self.get_audio_features(**{self.main_input_name: inputs}, attention_mask=attention_mask)
        lengths = speech.attention_mask.sum(dim=1)
        return [
            beam_search(self.decoder, self.joint, states[:length], self.config, num_beams)
            for states, length in zip(speech.pooler_output, lengths)
        ]


__all__ = ["FactoredASRForRNNT"]
