"""Whisper's encoder on the real length of the audio instead of on 30 s."""

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder, sinusoids


def subsample_mask(mask: Tensor, stride: int) -> Tensor:
    """
    Mask of a strided layer's output frames: `(batch, frames)` to `(batch, ceil(frames / stride))`.

    An output frame is real when its first input frame is.
    """
    return mask[:, ::stride]


def masked_mean_pool(hidden_states: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """
    Average each `size` neighbouring frames over the real ones only, so that a left-over frame is never diluted.

    hidden_states: `(batch, frames, dim)`; mask: `(batch, frames)`, True on real frames.
    Returns the pooled states `(batch, ceil(frames / size), dim)` and their mask.
    """
    missing = -hidden_states.shape[1] % size
    if missing:  # padding by nothing would be a copy
        hidden_states = nn.functional.pad(hidden_states, (0, 0, 0, missing))
        mask = nn.functional.pad(mask, (0, missing))
    weights = mask.to(hidden_states.dtype).unsqueeze(-1)
    sums = sum(hidden_states[:, first::size] * weights[:, first::size] for first in range(size))
    counts = sum(weights[:, first::size] for first in range(size))
    return sums / counts.clamp_min(1.0), subsample_mask(mask, size)


class SinusoidalPositions(nn.Embedding):
    """Whisper's position table; `_init_weights` of the models that have one fills it with sinusoids."""


class LengthAwareWhisperEncoder(WhisperEncoder):
    """
    `WhisperEncoder` with the same layers and weights, for features of any length up to the position table's.

    Transformers' encoder wants exactly 30 s and ignores masks. Here padding is masked before each convolution and in
    every attention, so the states of an utterance do not depend on the batch it came in.
    """

    def __init__(self, config):
        super().__init__(config)
        self.embed_positions = SinusoidalPositions(config.max_source_positions, config.d_model).requires_grad_(False)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        # `WhisperEncoder` fills its table here, too, but is asked only for modules with weights of their own
        super()._init_weights(module)
        if isinstance(module, SinusoidalPositions):
            init.copy_(module.weight, sinusoids(*module.weight.shape))

    def embed(self, input_features: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """
        Convolutions and positions.

        input_features: `(batch, mel bins, mel frames)`, 10 ms per frame; attention_mask: `(batch, mel frames)`, 1 on
        real frames, all real when None. Returns states `(batch, ceil(mel frames / 2), dim)` and their boolean mask.

        Raises:
            ValueError: wrong number of mel bins, mask of another length, or more frames than positions.
        """
        if input_features.dim() != 3 or input_features.shape[1] != self.num_mel_bins:
            raise ValueError(
                f"input_features must be (batch, {self.num_mel_bins} mel bins, frames); got shape "
                f"{tuple(input_features.shape)}. Use the feature extractor saved with this model."
            )
        batch, _, num_frames = input_features.shape
        if attention_mask is None:
            attention_mask = torch.ones(batch, num_frames, dtype=torch.bool, device=input_features.device)
        if attention_mask.shape != (batch, num_frames):
            raise ValueError(
                f"attention_mask must be (batch, frames) = {(batch, num_frames)}; got {tuple(attention_mask.shape)}."
            )
        mask = attention_mask.bool()
        hidden_states = (input_features * mask.unsqueeze(1)).to(self.conv1.weight.dtype)
        hidden_states = nn.functional.gelu(self.conv1(hidden_states)) * mask.unsqueeze(1)
        hidden_states = nn.functional.gelu(self.conv2(hidden_states)).transpose(1, 2)
        length = hidden_states.shape[1]
        if length > self.max_source_positions:
            raise ValueError(
                f"{num_frames} mel frames need {length} positions, the encoder has {self.max_source_positions}: "
                "cut longer audio into windows."
            )
        hidden_states = hidden_states + self.embed_positions.weight[:length]
        hidden_states = nn.functional.dropout(hidden_states, p=self.dropout, training=self.training)
        return hidden_states, subsample_mask(mask, 2)

    def run_layers(self, layers: nn.ModuleList, hidden_states: Tensor, mask: Tensor) -> Tensor:
        """Apply `layers` to `(batch, frames, dim)` states under a `(batch, frames)` boolean mask."""
        attention_bias = create_bidirectional_mask(self.config, hidden_states, mask)
        for layer in layers:
            hidden_states = layer(hidden_states, attention_bias)
        return hidden_states

    def forward(self, input_features: Tensor, attention_mask: Tensor | None = None, **kwargs) -> BaseModelOutput:
        """Final states `(batch, ceil(mel frames / 2), dim)` at 50 Hz; see `embed` for the arguments and errors."""
        hidden_states, mask = self.embed(input_features, attention_mask)
        hidden_states = self.run_layers(self.layers, hidden_states, mask)
        return BaseModelOutput(last_hidden_state=self.layer_norm(hidden_states))
