"""Residual quantization: a semantic book fitted offline, and acoustic books that gradients fit."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .quantization import straight_through
from .vector_quantization import Float32Buffers, nearest_codes


class SemanticQuantizer(Float32Buffers):
    """
    The k-means book (HASRD, section 2.2): nearest centroids in L2, float32 whatever the model's dtype.

    Nothing here is trained: centroids come from `recipes/fit_semantic_codebook.py`, and are NaN until then.

    Args:
        num_codes: centroids; dim: width of the states.
    """

    def __init__(self, num_codes: int, dim: int):
        super().__init__()
        self.register_buffer("codebook", torch.empty(num_codes, dim))

    @property
    def is_fitted(self) -> bool:
        return not bool(self.codebook[0, 0].isnan())

    @torch.no_grad()
    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Centroids `(batch, tokens, dim)` float32 and ids `(batch, tokens)` of states `(batch, tokens, dim)`."""
        codes = nearest_codes(states, self.codebook)
        return self.codebook[codes], codes


class FactorizedQuantizer(nn.Module):
    """
    One acoustic book, as DAC has it: look-up among unit vectors in few dimensions, codes learned by gradient.

    Float32 whatever the model's dtype, also under autocast.

    Args:
        dim: width of the latents; codebook_size: number of codes; codebook_dim: where they are compared.
    """

    def __init__(self, dim: int, codebook_size: int, codebook_dim: int):
        super().__init__()
        self.input_projection = nn.Linear(dim, codebook_dim)
        self.output_projection = nn.Linear(codebook_dim, dim)
        self.codebook = nn.Embedding(codebook_size, codebook_dim)

    def reset_parameters(self):
        """PyTorch's own values, which are DAC's: codes are normal with variance 1."""
        for module in (self.input_projection, self.output_projection, self.codebook):
            module.reset_parameters()

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """
        Of latents `(batch, tokens, dim)` float32: the quantized ones with straight-through gradients `(batch, tokens,
        dim)`, ids `(batch, tokens)`, and per token `(batch, tokens)` the commitment and the codebook loss, squared
        distances to the code, mean over its dimensions, with gradients to the latents or to the codes.
        """
        projected = project(latents, self.input_projection)
        directions = nn.functional.normalize(projected.detach(), dim=-1)
        # among unit vectors the nearest code is the one with the largest cosine; a zero vector gets code 0
        codes = (directions @ nn.functional.normalize(self.codebook.weight.detach().float(), dim=-1).T).argmax(dim=-1)
        chosen = self.codebook(codes).float()
        commitment = (projected - chosen.detach()).square().mean(dim=-1)
        codebook = (chosen - projected.detach()).square().mean(dim=-1)
        quantized = project(straight_through(projected, chosen), self.output_projection)
        return quantized, codes, commitment, codebook

    def embed(self, codes: Tensor) -> Tensor:
        """What ids `(batch, tokens)` stand for: `(batch, tokens, dim)` float32."""
        return project(self.codebook(codes).float(), self.output_projection)


@dataclass
class ResidualQuantizerOutput:
    """
    quantized: `(batch, tokens, dim)` float32, sum of the books used; codes: `(batch, books, tokens)`, of all books;
    commitment_loss, codebook_loss: `(batch,)`, sums over real tokens and over the books used.
    """

    quantized: Tensor
    codes: Tensor
    commitment_loss: Tensor
    codebook_loss: Tensor


class ResidualQuantizer(nn.Module):
    """
    Books of which each quantizes what the ones before have left (HASRD, section 2.2; DAC).

    Args:
        num_books: how many; others as `FactorizedQuantizer`.
    """

    def __init__(self, num_books: int, dim: int, codebook_size: int, codebook_dim: int):
        super().__init__()
        self.books = nn.ModuleList(FactorizedQuantizer(dim, codebook_size, codebook_dim) for _ in range(num_books))

    def forward(
        self, latents: Tensor, mask: Tensor, depths: Tensor | None = None, num_books: int | None = None
    ) -> ResidualQuantizerOutput:
        """
        latents: `(batch, tokens, dim)`; mask: `(batch, tokens)`, True on real tokens; depths: `(batch,)`, how many
        books each utterance uses, all when None: the others' codes are there, but neither their vectors nor their
        losses; num_books: no book from there on is looked at.
        """
        with torch.autocast(latents.device.type, enabled=False):
            residual = latents.float()
            quantized, codes = torch.zeros_like(residual), []
            losses = residual.new_zeros(2, len(residual))
            for index, book in enumerate(self.books[:num_books]):
                vectors, ids, commitment, codebook = book(residual)
                residual = residual - vectors
                if depths is not None:
                    vectors = vectors * (depths > index)[:, None, None]
                real = mask if depths is None else mask & (depths > index)[:, None]
                quantized = quantized + vectors
                losses = losses + (torch.stack([commitment, codebook]) * real).sum(dim=-1)
                codes.append(ids)
        if not codes:
            return ResidualQuantizerOutput(quantized, mask.new_zeros(len(mask), 0, mask.shape[1]).long(), *losses)
        return ResidualQuantizerOutput(quantized, torch.stack(codes, dim=1), *losses)

    def embed(self, codes: Tensor, books: Sequence[int]) -> Tensor:
        """Sum of some books' vectors `(batch, tokens, dim)` float32, for their ids `(batch, len(books), tokens)`."""
        with torch.autocast(codes.device.type, enabled=False):
            return sum(self.books[book].embed(codes[:, row]) for row, book in enumerate(books))


def project(values: Tensor, layer: nn.Linear) -> Tensor:
    """A linear layer in float32, whatever its own dtype."""
    bias = None if layer.bias is None else layer.bias.float()
    return nn.functional.linear(values.float(), layer.weight.float(), bias)


def draw_depths(batch: int, share: float, fewest: int, num_books: int, device: torch.device) -> Tensor:
    """
    Quantizer dropout: how many books each utterance of a batch uses `(batch,)`.

    An utterance is shortened with probability `share`, to `fewest` .. `num_books` books, all alike; DAC shortens the
    first `share` of every batch, which in a batch of one is none.
    """
    depths = torch.randint(fewest, num_books + 1, (batch,), device=device)
    return torch.where(torch.rand(batch, device=device) < share, depths, num_books)


def check_depths(depths: Tensor, batch: int, fewest: int, num_books: int) -> None:
    """Raise ValueError unless `depths` are `(batch,)` numbers of books in `fewest` .. `num_books`."""
    if depths.shape != (batch,) or bool(((depths < fewest) | (depths > num_books)).any()):
        raise ValueError(
            f"depths must be (batch,) = {(batch,)} numbers of acoustic books, {fewest} to {num_books}; got "
            f"{depths.tolist()}."
        )
