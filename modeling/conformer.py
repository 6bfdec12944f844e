"""Conformer layers that do not see padding, of FactoredASR's and BEST-RQ's encoders."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.models.parakeet.modeling_parakeet import (
    ParakeetEncoderAttention,
    ParakeetEncoderBlock,
    ParakeetEncoderRelPositionalEncoding,
)


class ChannelNorm(nn.LayerNorm):
    """Layer normalization of `(batch, channels, frames)` over the channels."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states.transpose(1, 2)).transpose(1, 2)


class ConformerLayers(nn.ModuleList):
    """
    Conformer blocks (Gulati et al., 2020): Parakeet's, with relative positions.

    The convolution modules normalize each frame over its channels, in place of their batch normalization: in training
    that sees the padding, and each process's frames on their own.
    """

    def __init__(self, config: PreTrainedConfig):
        if config._attn_implementation is None:  # a `PreTrainedModel` of its own would choose
            config._attn_implementation = "sdpa"
        super().__init__(ParakeetEncoderBlock(config, index) for index in range(config.num_hidden_layers))
        for layer in self:
            layer.conv.norm = ChannelNorm(config.hidden_size)

    def forward(self, hidden_states: Tensor, mask: Tensor, positions: Tensor) -> list[Tensor]:
        """
        What goes into the first layer and comes out of each, `(batch, frames, hidden_size)`.

        mask: `(batch, frames)`, True on real frames; positions: of `ParakeetEncoderRelPositionalEncoding`.
        """
        states = [hidden_states]
        keys = mask[:, None, None]  # padding reads real frames, too: in half precision a row without any would be NaN
        for layer in self:
            states.append(layer(states[-1], attention_mask=keys, position_embeddings=positions))
        return states


@torch.no_grad()
def reset_positions(module: nn.Module):
    """What Transformers' own `_init_weights` leaves out of a Conformer's relative positions, for a model with one."""
    if isinstance(module, ParakeetEncoderRelPositionalEncoding):  # a buffer that no file has
        init.copy_(module.inv_freq, module.compute_default_relative_positional_parameters(module.config))
    elif isinstance(module, ParakeetEncoderAttention):
        init.zeros_(module.bias_u)
        init.zeros_(module.bias_v)
