"""A vector quantizer whose codebook follows the data by moving averages."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .quantization import straight_through

LAPLACE_EPSILON = 1e-5  # as in the code that the paper builds on


@dataclass
class VectorQuantizerOutput:
    """
    quantized: `(batch, frames, dim)` in the latents' dtype, with straight-through gradients to them;
    codes: `(batch, frames)` int64; chosen: `(batch, frames, dim)` float32, the codes themselves, without gradient;
    distances: `(batch, frames)` float32, L2 between each latent and its code.
    """

    quantized: Tensor
    codes: Tensor
    chosen: Tensor
    distances: Tensor


def nearest_codes(latents: Tensor, codes: Tensor) -> Tensor:
    """Ids `(...)` of the `codes` `(codes, dim)` nearest to `latents` `(..., dim)` in L2, in float32."""
    flat, codes = latents.float().flatten(0, -2), codes.float()
    with torch.autocast(latents.device.type, enabled=False):  # the latent's own norm is the same for all codes
        ids = (codes.square().sum(dim=-1) - 2.0 * flat @ codes.T).argmin(dim=-1)
    return ids.view(latents.shape[:-1])


class Float32Buffers(nn.Module):
    """
    A module whose buffers stay float32 when its model is cast: between two codes their last digits decide, and
    averages move by less than half precision can hold.
    """

    def _apply(self, fn: Callable, recurse: bool = True) -> nn.Module:
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in self._buffers.items():
            if buffer.dtype != torch.float32:
                self._buffers[name] = kept[name].to(buffer.device)
        return self


class EMAVectorQuantizer(Float32Buffers):
    """
    Nearest-neighbour quantizer with an exponential-moving-average codebook (van den Oord et al., 2017, appendix A.1;
    Explainable disentanglement, section II-B).

    Code k is `sums[k] / sizes[k]`: moving averages of the latents that chose it and of how many they were, over the
    real frames of all processes. Sizes are smoothed (Laplace), so that a code which nothing chooses drifts to the
    origin instead of dividing by zero. The averages move once per forward pass in training mode: once per
    micro-batch under gradient accumulation. Everything is float32 whatever the model's dtype.

    Args:
        num_codes: N_CB; row `num_codes` of the codebook is the padding code, which no frame can choose.
        dim: width of the latents.
        decay: of the averages, 0.9 in the paper.
        distance: "l2", or "cosine" with directions alone compared (and codes averaged over unit latents).
        dead_code_threshold: codes with a smaller moving average of uses take the place of a random frame; 0 for never.
    """

    def __init__(self, num_codes: int, dim: int, decay: float, distance: str, dead_code_threshold: float):
        super().__init__()
        self.num_codes = num_codes
        self.decay = decay
        self.distance = distance
        self.dead_code_threshold = dead_code_threshold
        self.register_buffer("codebook", torch.zeros(num_codes + 1, dim))
        self.register_buffer("sums", torch.zeros(num_codes, dim))
        self.register_buffer("sizes", torch.ones(num_codes))

    @torch.no_grad()
    def reset_codebook(self):
        """ "Codebooks were initialized using Kaiming noise"; each code starts as if one frame had chosen it."""
        # the fan-in is the width of a code: uniform within sqrt(6 / dim), as in EnCodec's quantizer; the code that the
        # paper builds on, vector-quantize-pytorch, has `(1, codes, dim)`, whose fan-in is codes x dim
        init.kaiming_uniform_(self.codebook)
        if self.distance == "cosine":
            init.copy_(self.codebook, nn.functional.normalize(self.codebook, dim=-1))
        init.copy_(self.sums, self.codebook[: self.num_codes])
        init.ones_(self.sizes)

    @torch.no_grad()
    def nearest(self, latents: Tensor) -> Tensor:
        """Ids `(...)` of the codes nearest to `latents` `(..., dim)`; the padding code is none of them."""
        codes = self.codebook[: self.num_codes]
        if self.distance == "l2":
            return nearest_codes(latents, codes)
        with torch.autocast(latents.device.type, enabled=False):
            return (latents.float() @ nn.functional.normalize(codes, dim=-1).T).argmax(dim=-1)

    def embed(self, codes: Tensor) -> Tensor:
        """
        Code vectors `(..., dim)` float32 of ids `(...)`, the padding code's included.

        Raises:
            ValueError: an id outside the codebook.
        """
        if codes.numel() and not (0 <= int(codes.min()) and int(codes.max()) <= self.num_codes):
            raise ValueError(
                f"codes must lie in [0, {self.num_codes}], where {self.num_codes} is padding; got values from "
                f"{int(codes.min())} to {int(codes.max())}."
            )
        return self.codebook[codes]

    def forward(self, latents: Tensor, mask: Tensor) -> VectorQuantizerOutput:
        """
        latents: `(batch, frames, dim)`; mask: `(batch, frames)`, True on real frames. Behind them stands the padding
        code, and the averages do not see them.
        """
        values = latents.float()
        codes = self.nearest(values).masked_fill(~mask, self.num_codes)
        chosen = self.codebook[codes]
        distances = (values.detach() - chosen).norm(dim=-1)
        quantized = straight_through(values, chosen).to(latents.dtype)
        if self.training and torch.is_grad_enabled():  # not while a model in training is asked for tokens
            self.update(values.detach()[mask], codes[mask])
        return VectorQuantizerOutput(quantized, codes, chosen, distances)

    @torch.no_grad()
    def update(self, frames: Tensor, codes: Tensor):
        """Move the averages by the `(frames, dim)` of this process and all others, with the ids `(frames,)`."""
        if self.distance == "cosine":
            frames = nn.functional.normalize(frames, dim=-1)
        counted = nn.functional.pad(frames, (0, 1), value=1.0)
        statistics = frames.new_zeros(self.num_codes, counted.shape[1]).index_add_(0, codes, counted)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(statistics)
        self.sums.lerp_(statistics[:, :-1], 1 - self.decay)
        self.sizes.lerp_(statistics[:, -1], 1 - self.decay)
        if self.dead_code_threshold:
            self._restart_dead_codes(frames)
        total = self.sizes.sum()
        smoothed = (self.sizes + LAPLACE_EPSILON) / (total + self.num_codes * LAPLACE_EPSILON) * total
        codes = self.sums / smoothed.unsqueeze(-1)
        self.codebook[: self.num_codes] = (
            nn.functional.normalize(codes, dim=-1) if self.distance == "cosine" else codes
        )

    def _restart_dead_codes(self, frames: Tensor):
        """Codes that hardly anything chooses become random frames, the same in all processes."""
        dead = self.sizes < self.dead_code_threshold
        if not bool(dead.any()):
            return
        replacements = frames[torch.randint(len(frames), (self.num_codes,), device=frames.device)]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast(replacements, src=0)
        self.sizes[dead] = max(self.dead_code_threshold, 1.0)
        self.sums[dead] = (replacements * self.sizes.unsqueeze(-1))[dead]

    @torch.no_grad()
    def fit(self, frames: Tensor, generator: torch.Generator, iterations: int = 10):
        """
        Start from the data: k-means on `(frames, dim)`, in place of Kaiming noise, for short trainings.

        Raises:
            ValueError: fewer frames than codes.
        """
        if len(frames) < self.num_codes:
            raise ValueError(
                f"fitting {self.num_codes} codes needs as many frames; got {len(frames)}: take more rows."
            )
        frames = frames.float()
        if self.distance == "cosine":
            frames = nn.functional.normalize(frames, dim=-1)
        start = torch.randperm(len(frames), generator=generator)[: self.num_codes]
        self.codebook[: self.num_codes] = frames[start.to(frames.device)]
        for _ in range(iterations):
            ids = self.nearest(frames)
            sizes = torch.bincount(ids, minlength=self.num_codes).to(frames.dtype).unsqueeze(-1)
            sums = torch.zeros_like(self.sums).index_add_(0, ids, frames)
            old = self.codebook[: self.num_codes]
            self.codebook[: self.num_codes] = torch.where(sizes > 0, sums / sizes.clamp_min(1.0), old)
        self.sizes.copy_(sizes.squeeze(-1).clamp_min(1.0) / len(frames) * self.num_codes)
        self.sums.copy_(self.codebook[: self.num_codes] * self.sizes.unsqueeze(-1))
