"""Speech encoders as FactoredASR sees them: a state for each frame, from stacked frames, log-mel or samples."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig
from transformers.models.parakeet.modeling_parakeet import ParakeetEncoderRelPositionalEncoding

from ..configuration.configuration_factored_asr import STACKED_FRAME_ENCODERS
from ..configuration.configuration_kmeans_tokenizer import WAVEFORM_ENCODERS
from .conformer import ConformerLayers
from .waveform_encoding import check_waveforms, encode_waveforms, waveform_frame_mask
from .whisper_encoder import LengthAwareWhisperEncoder, subsample_mask


class LSTMEncoder(nn.Module):
    """Unidirectional LSTM over stacked frames (section 2.4): no frame sees the padding behind it."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        dropout = config.dropout if config.num_hidden_layers > 1 else 0.0
        self.lstm = nn.LSTM(
            config.input_size, config.hidden_size, config.num_hidden_layers, batch_first=True, dropout=dropout
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """States `(batch, frames, hidden_size)` of `(batch, frames, input_size)`."""
        return self.dropout(self.lstm(frames)[0])


class ConformerEncoder(nn.Module):
    """Conformer over stacked frames (section 2.4; Gulati et al., 2020): `ConformerLayers` behind one linear layer."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.input_projection = nn.Linear(config.input_size, config.hidden_size)
        self.positions = ParakeetEncoderRelPositionalEncoding(config)
        self.layers = ConformerLayers(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """States `(batch, frames, hidden_size)` of `(batch, frames, input_size)`."""
        hidden_states = self.dropout(self.input_projection(frames))
        return self.layers(hidden_states, mask, self.positions(hidden_states))[-1]


class FrameEncoder(nn.Module):
    """
    Any encoder of `ENCODERS` behind one face: states, which of them are real, and the input frames that they encode.

    A state's input frame f_i (eq. 1) is what the encoder reads for it: a stacked frame, the mel frames between two
    states of a Whisper or Parakeet, or the outcome of the convolutions of an encoder of waveforms.

    Args:
        config: of the encoder.

    Attributes:
        draws_spans: whether an encoder that `masks_spans` draws them itself in training; else it does without
            `masked_frames` alone.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        self.draws_spans = True
        if config.model_type == "lstm_encoder":
            self.encoder = LSTMEncoder(config)
        elif config.model_type == "conformer_encoder":
            self.encoder = ConformerEncoder(config)
        elif config.model_type == "whisper":
            self.encoder = LengthAwareWhisperEncoder(config)
        else:  # else it would have the checkpoint's dtype, which the configuration remembers
            self.encoder = AutoModel.from_config(config, dtype=torch.get_default_dtype())

    @property
    def is_stacked(self) -> bool:
        """Whether the encoder reads one stacked frame for each state."""
        return self.config.model_type in STACKED_FRAME_ENCODERS

    @property
    def reads_waveforms(self) -> bool:
        return self.config.model_type in WAVEFORM_ENCODERS

    @property
    def masks_spans(self) -> bool:
        """Whether spans of frames are to be masked in training, as encoders of waveforms are configured."""
        return self.reads_waveforms and self.config.apply_spec_augment and self.config.mask_time_prob > 0

    @property
    def frames_per_state(self) -> int:
        """Input frames for each state, of encoders that read features."""
        if self.config.model_type == "parakeet_encoder":
            return self.config.subsampling_factor
        return 2 if self.config.model_type == "whisper" else 1

    @property
    def frame_size(self) -> int:
        """Of f_i."""
        if self.is_stacked:
            return self.config.input_size
        if self.reads_waveforms:
            return self.config.conv_dim[-1]
        return self.frames_per_state * self.config.num_mel_bins

    def forward(
        self, inputs: Tensor, attention_mask: Tensor | None, masked_frames: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """
        States `(batch, states, hidden_size)` and their mask `(batch, states)`, True on real ones.

        inputs: features `(batch, frames, size)`, a Whisper's `(batch, mel bins, frames)`, or samples `(batch,
            samples)`; attention_mask: `(batch, frames or samples)`, 1 on real ones; masked_frames: `(batch, states)`,
            True where the encoder must do without the input frame.

        Raises:
            ValueError: other shapes, nothing to encode, and utterances too short for a single state.
        """
        attention_mask = self.check(inputs, attention_mask)
        mask = self.state_mask(attention_mask)
        if self.reads_waveforms:
            states = encode_waveforms(
                self.encoder,
                inputs,
                attention_mask,
                lambda samples, samples_mask, rows: self._encode(samples, samples_mask, rows, masked_frames),
            )
            return states, mask[:, : states.shape[1]]
        inputs = inputs.to(next(self.parameters()).dtype)
        if masked_frames is not None:
            inputs = self._without_frames(inputs, masked_frames)
        inputs = self.frames_first(self.frames_first(inputs) * attention_mask.unsqueeze(-1))
        if self.is_stacked:
            return self.encoder(inputs, mask), mask
        return self.encoder(inputs, attention_mask).last_hidden_state, mask

    def _encode(self, samples: Tensor, mask: Tensor | None, rows: slice, masked_frames: Tensor | None) -> Tensor:
        """States of samples; `rows` of `masked_frames` are theirs, beside the spans that the encoder draws itself."""
        masking: dict[str, Any] = {}
        if masked_frames is not None or (self.training and self.masks_spans):
            frame_mask = waveform_frame_mask(self.encoder, torch.ones_like(samples) if mask is None else mask)
            hidden = torch.zeros_like(frame_mask)  # Transformers' encoder draws none where it is given others
            if self.training and self.masks_spans and self.draws_spans:
                hidden = self.draw_spans(frame_mask)
            if masked_frames is not None:
                hidden = hidden | masked_frames[rows, : hidden.shape[1]]
            masking["mask_time_indices"] = hidden
        return self.encoder(samples, mask, **masking).last_hidden_state

    def draw_spans(self, frame_mask: Tensor, seeds: list[int] | None = None) -> Tensor:
        """
        `(batch, frames)`, True in the spans of an encoder that `masks_spans`: as many as Transformers draws, but each
        utterance's from its own seed, and none where one would hide it whole.

        frame_mask: `(batch, frames)`, True on real ones; seeds: one per utterance, PyTorch's own generator when None.
        """
        width, least = self.config.mask_time_length, self.config.mask_time_min_masks
        spans = torch.zeros(frame_mask.shape, dtype=torch.bool)
        for row, length in enumerate(frame_mask.sum(dim=1).tolist()):
            if length <= width:
                continue
            generator = torch.default_generator if seeds is None else torch.Generator().manual_seed(seeds[row])
            rounding = float(torch.rand((), generator=generator))  # up or down, right on average
            num_spans = max(int(self.config.mask_time_prob * length / width + rounding), least)
            starts = torch.randperm(length - width + 1, generator=generator)[: min(num_spans, length // width)]
            spans[row, starts[:, None] + torch.arange(width)] = True
        return spans.to(frame_mask.device)

    def _convolve(self, samples: Tensor, mask: Tensor | None, rows: slice) -> Tensor:
        """What the layers above the convolutions read, `(batch, states, channels)`."""
        return self.encoder.feature_extractor(samples).transpose(1, 2)

    def frames_first(self, features: Tensor) -> Tensor:
        """Features as `(batch, frames, size)`, and back: a Whisper's are `(batch, mel bins, frames)`."""
        return features.transpose(1, 2) if self.config.model_type == "whisper" else features

    def _without_frames(self, inputs: Tensor, masked_frames: Tensor) -> Tensor:
        """Features with 0, the mean where each bin is normalized, in the masked states' input frames."""
        frames = self.frames_first(inputs)
        masked = masked_frames.repeat_interleave(self.frames_per_state, dim=1)[:, : frames.shape[1], None]
        return self.frames_first(frames.masked_fill(masked, 0.0))

    def input_frames(self, inputs: Tensor, attention_mask: Tensor | None) -> Tensor:
        """f_i `(batch, states, frame_size)`, without gradient; for arguments see `forward`."""
        with torch.no_grad():
            if self.is_stacked:
                return inputs
            if self.reads_waveforms:
                mask = self.check(inputs, attention_mask)
                return encode_waveforms(self.encoder, inputs, mask, self._convolve)
            frames = self.frames_first(inputs)
            frames = nn.functional.pad(frames, (0, 0, 0, -frames.shape[1] % self.frames_per_state))
            return frames.unflatten(1, (-1, self.frames_per_state)).flatten(2)

    def state_mask(self, attention_mask: Tensor) -> Tensor:
        """`(batch, states)`, True on real states, from a mask of the inputs `(batch, frames or samples)`."""
        if self.reads_waveforms:
            return waveform_frame_mask(self.encoder, attention_mask)
        return subsample_mask(attention_mask.bool(), self.frames_per_state)

    def count_states(self, attention_mask: Tensor) -> Tensor:
        """How many states utterances get `(batch,)`, from a mask of the inputs `(batch, frames or samples)`."""
        return self.state_mask(attention_mask).sum(dim=1)

    def check(self, inputs: Tensor, attention_mask: Tensor | None) -> Tensor:
        """
        The inputs' mask, all real when None.

        Raises:
            ValueError: shapes that the encoder cannot read, no utterance, and utterances without anything real.
        """
        check = check_waveforms if self.reads_waveforms else self._check_features
        attention_mask = check(inputs, attention_mask)
        lengths = attention_mask.sum(dim=1)
        if not len(lengths) or bool((lengths < 1).any()):
            unit = "samples" if self.reads_waveforms else "frames"
            raise ValueError(
                f"Each utterance needs {unit} to encode; got inputs of shape {tuple(inputs.shape)} with "
                f"{lengths.tolist()} real {unit}."
            )
        return attention_mask

    def _check_features(self, inputs: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The mask `(batch, frames)` of features, all real when None. Raises ValueError for other shapes."""
        size = self.config.input_size if self.is_stacked else self.config.num_mel_bins
        if inputs.dim() != 3 or self.frames_first(inputs).shape[2] != size:
            expected = (
                f"(batch, {size}, frames)" if self.config.model_type == "whisper" else f"(batch, frames, {size})"
            )
            raise ValueError(
                f"input_features must be {expected}; got shape {tuple(inputs.shape)}. Use the feature extractor saved "
                "with this model."
            )
        if attention_mask is None:
            return torch.ones(self.frames_first(inputs).shape[:2], dtype=torch.long, device=inputs.device)
        if attention_mask.shape != self.frames_first(inputs).shape[:2]:
            raise ValueError(
                f"attention_mask must be (batch, frames) = {tuple(self.frames_first(inputs).shape[:2])}; got "
                f"{tuple(attention_mask.shape)}."
            )
        return attention_mask
