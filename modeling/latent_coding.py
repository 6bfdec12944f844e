"""Between a frozen encoder's states and a codebook: down-sampling, up-sampling, a noise head."""

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from ..configuration.configuration_disentangled_whisper import ATTENTION_HEADS
from .whisper_encoder import masked_mean_pool, subsample_mask

MLP_RATIO = 4


class MlpBlock(nn.Module):
    """`x + MLP(LayerNorm(x))`: two layers with a GELU between them, `(..., dim)` to `(..., dim)`."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, MLP_RATIO * dim)
        self.contract = nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, states: Tensor) -> Tensor:
        return states + self.contract(nn.functional.gelu(self.expand(self.norm(states))))


class MaskedConv1d(nn.Conv1d):
    """A convolution over `(batch, frames, dim)` to which frames behind the utterance are zeros, as its padding is."""

    def __init__(self, in_dim: int, out_dim: int, stride: int = 1, groups: int = 1):
        super().__init__(in_dim, out_dim, kernel_size=3, stride=stride, padding=1, groups=groups)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """mask: `(batch, frames)`, True on real frames. Returns `(batch, ceil(frames / stride), dim)`."""
        return super().forward((states * mask.unsqueeze(-1)).transpose(1, 2)).transpose(1, 2)


class MeanDownsampling(nn.Module):
    """Mean of two neighbouring real frames, and an MLP block that places it ("trainable parameters are important")."""

    def __init__(self, dim: int):
        super().__init__()
        self.mlp = MlpBlock(dim)

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`(batch, frames, dim)` at 50 Hz and `(batch, frames)` to the same at 25 Hz."""
        pooled, mask = masked_mean_pool(states, mask, 2)
        return self.mlp(pooled), mask


class ConvDownsampling(nn.Module):
    """Every second frame plus a strided convolution, and an MLP block."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = MaskedConv1d(dim, dim, stride=2)
        self.mlp = MlpBlock(dim)

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`(batch, frames, dim)` at 50 Hz and `(batch, frames)` to the same at 25 Hz."""
        return self.mlp(states[:, ::2] + self.conv(states, mask)), subsample_mask(mask, 2)


class ConvTransformerBlock(nn.Module):
    """
    ActionFormer's transformer block (Zhang et al., 2022): depthwise convolutions make queries, keys and values, and
    with a stride of 2 they also shorten the sequence, beside a max-pooled residual path.
    """

    def __init__(self, dim: int, stride: int):
        super().__init__()
        self.stride = stride
        self.norm = nn.LayerNorm(dim)
        self.convs = nn.ModuleList(MaskedConv1d(dim, dim, stride, groups=dim) for _ in range(3))
        has_bias = (True, False, True)  # what is added to all keys changes no attention: it would drift by rounding
        self.conv_norms = nn.ModuleList(nn.LayerNorm(dim, bias=each) for each in has_bias)
        self.projections = nn.ModuleList(nn.Linear(dim, dim, bias=each) for each in has_bias)
        self.project_out = nn.Linear(dim, dim)
        self.mlp = MlpBlock(dim)

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`(batch, frames, dim)` and `(batch, frames)` to `(batch, ceil(frames / stride), dim)` and its mask."""
        normed, short_mask = self.norm(states), subsample_mask(mask, self.stride)
        queries, keys, values = (
            project(norm(conv(normed, mask))).unflatten(-1, (ATTENTION_HEADS, -1)).transpose(1, 2)
            for conv, norm, project in zip(self.convs, self.conv_norms, self.projections)
        )
        attended = nn.functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=short_mask[:, None, None]
        )
        states = self._shorten(states, mask) + self.project_out(attended.transpose(1, 2).flatten(2))
        return self.mlp(states), short_mask

    def _shorten(self, states: Tensor, mask: Tensor) -> Tensor:
        """The residual path: each output frame is the maximum of the real frames around it."""
        if self.stride == 1:
            return states
        lowest = torch.finfo(states.dtype).min
        states = states.masked_fill(~mask.unsqueeze(-1), lowest).transpose(1, 2)
        pooled = nn.functional.max_pool1d(states, kernel_size=3, stride=self.stride, padding=1).transpose(1, 2)
        return pooled.masked_fill(~subsample_mask(mask, self.stride).unsqueeze(-1), 0.0)


class ConvTransformerDownsampling(nn.Module):
    """Two convolutions, blocks at full rate, one block of stride 2: ActionFormer's embedding, stem and branch."""

    def __init__(self, dim: int, stem_layers: int):
        super().__init__()
        self.convs = nn.ModuleList(MaskedConv1d(dim, dim) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.blocks = nn.ModuleList(ConvTransformerBlock(dim, stride) for stride in (*[1] * stem_layers, 2))

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`(batch, frames, dim)` at 50 Hz and `(batch, frames)` to the same at 25 Hz."""
        for conv, norm in zip(self.convs, self.norms):
            states = nn.functional.relu(norm(conv(states, mask)))
        for block in self.blocks:
            states, mask = block(states, mask)
        return states, mask


class LatentEncoder(nn.Module):
    """Eq. 1: `q_e(X) = DS(W(X)) . P_d`, states at 50 Hz to latents at 25 Hz."""

    def __init__(self, config):
        super().__init__()
        if config.downsampling == "mean":
            self.downsampling = MeanDownsampling(config.d_model)
        elif config.downsampling == "conv":
            self.downsampling = ConvDownsampling(config.d_model)
        else:
            self.downsampling = ConvTransformerDownsampling(config.d_model, config.stem_layers)
        self.config = config
        self.project = nn.Linear(config.d_model, config.codebook_dim)
        is_normalized = config.normalize_latents
        self.norm = nn.LayerNorm(config.codebook_dim, elementwise_affine=False) if is_normalized else nn.Identity()

    @torch.no_grad()
    def fit(self, frames: Tensor):
        """
        Start from the data: the latents are principal components of down-sampled frames `(frames, d_model)`.

        Raises:
            ValueError: no more frames than they have dimensions, or more latent dimensions than that.
        """
        if len(frames) <= frames.shape[1]:
            raise ValueError(f"fitting needs more frames than dimensions; got frames of shape {tuple(frames.shape)}.")
        if self.project.out_features > frames.shape[1]:
            raise ValueError(f"{self.project.out_features} latent dimensions cannot be fitted to {frames.shape[1]}.")
        frames = frames.double()
        mean = frames.mean(dim=0)
        _, vectors = torch.linalg.eigh((frames - mean).T @ (frames - mean))
        directions = vectors[:, -self.project.out_features :].T
        self.project.weight.copy_(directions)
        self.project.bias.copy_(-directions @ mean)

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`(batch, states, d_model)` and their mask to `(batch, ceil(states / 2), codebook_dim)` and its mask."""
        states, mask = self.downsampling(states, mask)
        return self.to_latents(states), mask

    def to_latents(self, frames: Tensor) -> Tensor:
        """Down-sampled `(..., d_model)` to `(..., codebook_dim)`, of unit length where directions are compared."""
        latents = self.norm(self.project(frames))
        return nn.functional.normalize(latents, dim=-1) if self.config.codebook_distance == "cosine" else latents


class LatentDecoder(nn.Module):
    """
    `D_L` of section II-C: codes at 25 Hz to states like the frozen encoder's at 50 Hz.

    Up-sampling after pooling or convolution is followed by a position table ("restoring positional encoding"); what a
    conv-transformer made "is able to retain sequence information" without.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.project = nn.Linear(config.codebook_dim, config.d_model)
        if config.upsampling == "conv":  # twice the length exactly
            self.upsampling = nn.ConvTranspose1d(config.d_model, config.d_model, kernel_size=4, stride=2, padding=1)
        # learnt from nothing: the codes of a frozen encoder hold its own positions already
        if config.downsampling != "conv_transformer":
            self.positions = nn.Embedding(config.max_source_positions, config.d_model)
        self.refinement = nn.ModuleList(WhisperEncoderLayer(config) for _ in range(config.refinement_layers))
        self.norm = nn.LayerNorm(config.d_model)

    @torch.no_grad()
    def fit(self, codes: Tensor, targets: Tensor):
        """
        Start from the data: the best linear guess of `targets` `(frames, d_model)` from their codes
        `(frames, codebook_dim)`, passed on by up-sampling, refinement and norm as well as they can before training.
        """
        inputs = nn.functional.pad(codes.double(), (0, 1), value=1.0)
        solution = torch.linalg.pinv(inputs.T @ inputs, hermitian=True) @ (inputs.T @ targets.double())
        self.project.weight.copy_(solution[:-1].T)
        self.project.bias.copy_(solution[-1])
        self.norm.weight.fill_(targets.std(dim=1).mean().item())
        self.norm.bias.fill_(targets.mean().item())
        if self.config.upsampling == "conv":  # repetition
            self.upsampling.weight.zero_()
            self.upsampling.weight[:, :, 1:3] = torch.eye(self.config.d_model).unsqueeze(-1)
        if self.config.downsampling != "conv_transformer":
            self.positions.weight.zero_()

    def forward(self, quantized: Tensor, mask: Tensor, num_states: int) -> Tensor:
        """
        quantized: `(batch, frames, codebook_dim)`; mask: `(batch, num_states)` of the states to be, True on real ones.
        Returns `(batch, num_states, d_model)`; `num_states` is twice the frames, or one less.
        """
        states = self.project(quantized)
        if self.config.upsampling == "conv":
            states = states * subsample_mask(mask, 2).unsqueeze(-1)
            states = self.upsampling(states.transpose(1, 2)).transpose(1, 2)[:, :num_states]
        else:
            states = states.repeat_interleave(2, dim=1)[:, :num_states]
        if self.config.downsampling != "conv_transformer":
            states = states + self.positions.weight[:num_states]
        attention_bias = create_bidirectional_mask(self.config, states, mask)
        for layer in self.refinement:
            states = layer(states, attention_bias)
        return self.norm(states)


class Adapter(nn.Module):
    """The black box of Table I: "each adapter block consists of 2 MLP layers with a GELU activation function"."""

    def __init__(self, config):
        super().__init__()
        self.blocks = nn.Sequential(*(MlpBlock(config.d_model) for _ in range(config.adapter_blocks)))

    def forward(self, states: Tensor) -> Tensor:
        """`(batch, frames, d_model)` to the same."""
        return self.blocks(states)


class NoiseHead(nn.Module):
    """`NC` of eq. 7: class logits from the quantization residue, "optionally transformer-augmented"."""

    def __init__(self, config):
        super().__init__()
        dim = config.noise_head_dim
        self.frame_layer = nn.Linear(config.codebook_dim, dim)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim, ATTENTION_HEADS, MLP_RATIO * dim, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(config.noise_head_layers)
        )
        self.utterance_layer = nn.Linear(dim, dim)
        self.classifier = nn.Linear(dim, len(config.noise_classes))

    def forward(self, residue: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """
        residue: `(batch, frames, codebook_dim)`; mask: `(batch, frames)`, True on real frames.
        Returns logits `(batch, classes)` and the penultimate layer's `(batch, noise_head_dim)`.
        """
        states = nn.functional.gelu(self.frame_layer(residue))
        for layer in self.layers:
            states = layer(states, src_key_padding_mask=~mask)
        weights = mask.unsqueeze(-1).to(states.dtype)
        pooled = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1.0)
        features = nn.functional.gelu(self.utterance_layer(pooled))
        return self.classifier(features), features
