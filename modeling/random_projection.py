"""The frozen quantizer that makes the targets of BEST-RQ."""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .vector_quantization import Float32Buffers, nearest_codes


class RandomProjectionQuantizer(Float32Buffers):
    """
    A random projection and a random codebook, neither of which is ever trained (BEST-RQ, Chiu et al., 2022, eq. 1).

    As in SpeechBrain's, to which HASRD refers: the projection is Xavier-uniform, the codes are Gaussian directions,
    and the label of a vector is the code in the direction most like that of its projection, "the standard
    cosine-distance-based code lookup" (HASRD, section 2.1). Both are buffers that are saved with the weights: other
    ones would be other labels.

    Args:
        input_size: of the vectors; codebook_size: number of codes; codebook_dim: of projections and codes.
    """

    def __init__(self, input_size: int, codebook_size: int, codebook_dim: int):
        super().__init__()
        self.register_buffer("projection", torch.empty(input_size, codebook_dim))
        self.register_buffer("codebook", torch.empty(codebook_size, codebook_dim))
        self.reset()

    @torch.no_grad()
    def reset(self):
        """Draw both, for `_init_weights` of a model with a quantizer; what was loaded stays."""
        init.xavier_uniform_(self.projection)
        init.copy_(self.codebook, nn.functional.normalize(torch.randn_like(self.codebook), dim=-1))

    @torch.no_grad()
    def forward(self, vectors: Tensor) -> Tensor:
        """Labels `(...)`, int64 in `[0, codebook_size)`, of `(..., input_size)`; in float32 in any dtype."""
        with torch.autocast(vectors.device.type, enabled=False):
            projected = nn.functional.normalize(vectors.float() @ self.projection.float(), dim=-1)
        return nearest_codes(projected, self.codebook)
