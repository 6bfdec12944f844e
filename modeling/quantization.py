"""Quantizers: continuous frames to discrete codes."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


def binarize(values: Tensor) -> Tensor:
    """Sign in {-1, +1} with 0 mapped to -1, in the dtype of `values`, any shape."""
    return torch.where(values > 0, 1.0, -1.0).to(values.dtype)


def straight_through(values: Tensor, quantized: Tensor) -> Tensor:
    """`quantized` forward, to the bit; the gradient of `values` backward (Bengio et al., 2013)."""
    return quantized.detach() + (values - values.detach())


def bits_to_codes(bits: Tensor) -> Tensor:
    """Ids `(...)` int64 of bit vectors `(..., bits)` in {-1, +1}; bit j counts `2**j` (least significant first)."""
    weights = 2 ** torch.arange(bits.shape[-1], device=bits.device)
    return ((bits > 0) * weights).sum(dim=-1)


def codes_to_bits(codes: Tensor, num_bits: int) -> Tensor:
    """
    Bit vectors `(..., bits)` float32 in {-1, +1} of ids `(...)`.

    Raises:
        ValueError: an id outside the codebook.
    """
    if codes.numel() and not (0 <= int(codes.min()) and int(codes.max()) < 2**num_bits):
        raise ValueError(
            f"codes must lie in [0, {2**num_bits}); got values from {int(codes.min())} to {int(codes.max())}. "
            "Drop padding (attention_mask 0) first."
        )
    shifts = torch.arange(num_bits, device=codes.device)
    return ((codes.unsqueeze(-1) >> shifts) & 1).float() * 2 - 1


@dataclass
class VotingLFQOutput:
    """
    quantized: `(batch, frames, dim)`, what the next layer reads; codes: `(batch, frames)` int64;
    scores: `(batch, frames, bits)`, mean vote in [-1, 1]; projections: `(voters, batch, frames, bits)` float32.
    """

    quantized: Tensor
    codes: Tensor
    scores: Tensor
    projections: Tensor


class VotingLFQ(nn.Module):
    """
    Voting look-up-free quantizer (StableToken, section 2.2).

    Every voter projects the frame to `num_bits` values and takes their signs (eq. 1). Training passes on the mean vote
    with straight-through gradients (eq. 2), inference its sign (eq. 3), whose bits are the token's id. All voters are
    one matrix product, in float32 whatever the model's dtype: a token must not change with the precision.

    Args:
        dim: width of the frames.
        num_bits, num_voters: `d` and `n` of eq. 1.
        projection_bias, output_bias: whether the two projections have biases.
    """

    def __init__(
        self, dim: int, num_bits: int, num_voters: int, projection_bias: bool = True, output_bias: bool = False
    ):
        super().__init__()
        self.num_bits = num_bits
        self.num_voters = num_voters
        self.project_in = nn.Linear(dim, num_voters * num_bits, bias=projection_bias)
        self.project_out = nn.Linear(num_bits, dim, bias=output_bias)

    @torch.no_grad()
    def fit(self, frames: Tensor) -> Tensor:
        """
        Start from the data: bits are signs of principal components, the output is the best linear guess.

        Deviation from the "independent perspectives" of section 2.2: all voters start as copies of the same
        directions, each turned a little at random, so that they differ but agree on most bits; independent ones would
        cancel in the mean vote until training has aligned them. Returns the mean `(dim,)`, which an output without a
        bias cannot hold.

        frames: `(frames, dim)` before quantization.

        Raises:
            ValueError: no more frames than they have dimensions.
        """
        if frames.shape[0] <= frames.shape[1]:
            raise ValueError(f"fitting needs more frames than dimensions; got frames of shape {tuple(frames.shape)}.")
        frames = frames.float()
        mean = frames.mean(dim=0)
        values, vectors = torch.linalg.eigh((frames - mean).T @ (frames - mean) / len(frames))
        directions = vectors[:, -self.num_bits :].T / values[-self.num_bits :, None].clamp_min(1e-8).sqrt()
        turned = directions.repeat(self.num_voters, 1)
        turned += 0.1 * turned.norm(dim=1, keepdim=True) * torch.randn_like(turned) / len(mean) ** 0.5
        self.project_in.weight.copy_(turned)
        if self.project_in.bias is not None:
            self.project_in.bias.copy_(-turned @ mean)
        scores = self.vote(self.project(frames[None])).scores[0].cpu().double()
        targets = (frames - mean).cpu().double()
        inverse = torch.linalg.pinv(scores.T @ scores, hermitian=True)  # bits may repeat each other: no full rank
        self.project_out.weight.copy_((inverse @ (scores.T @ targets)).T)
        return mean

    def project(self, hidden_states: Tensor) -> Tensor:
        """Eq. 1: `(batch, frames, dim)` to `(voters, batch, frames, bits)` in float32."""
        bias = None if self.project_in.bias is None else self.project_in.bias.float()
        with torch.autocast(hidden_states.device.type, enabled=False):
            projections = nn.functional.linear(hidden_states.float(), self.project_in.weight.float(), bias)
        return projections.unflatten(-1, (self.num_voters, self.num_bits)).movedim(-2, 0)

    def vote(self, projections: Tensor) -> VotingLFQOutput:
        """Eq. 2 and 3 on `(voters, batch, frames, bits)`."""
        votes = straight_through(projections, binarize(projections))
        scores = votes.mean(dim=0)
        bits = binarize(scores)
        quantized = self.embed_bits(scores if self.training else bits)
        return VotingLFQOutput(quantized, bits_to_codes(bits), scores, projections)

    def embed_bits(self, bits: Tensor) -> Tensor:
        """Back to the encoder's width: `(..., bits)` to `(..., dim)` in the weights' dtype."""
        return self.project_out(bits.to(self.project_out.weight.dtype))

    def forward(
        self, hidden_states: Tensor, perturbed_states: Tensor | None = None, noisy_voters: Tensor | None = None
    ) -> VotingLFQOutput:
        """
        hidden_states, perturbed_states: `(batch, frames, dim)`; noisy_voters: `(voters,)` boolean, True for the
        voters that see the perturbed view (section 2.3).
        """
        projections = self.project(hidden_states)
        if perturbed_states is not None:
            noisy = noisy_voters.view(-1, 1, 1, 1)
            projections = torch.where(noisy, self.project(perturbed_states), projections)
        return self.vote(projections)
