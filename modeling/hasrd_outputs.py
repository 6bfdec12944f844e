"""What HASRD returns."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class HasrdEncoderOutput(ModelOutput):
    """
    Args:
        audio_codes: `(batch, books, tokens)` int64, the semantic book first; -1 on padding.
        attention_mask: `(batch, tokens)` boolean, True on real tokens.
    """

    audio_codes: torch.LongTensor | None = None
    attention_mask: torch.BoolTensor | None = None


@dataclass
class HasrdDecoderOutput(ModelOutput):
    """
    Args:
        audio_values: `(batch, samples)` float32 at 16 kHz in [-1, 1]; zeros behind the end of a shorter utterance.
    """

    audio_values: torch.FloatTensor | None = None


@dataclass
class HasrdOutput(ModelOutput):
    """
    Args:
        audio_values: `(batch, decoded tokens x samples_per_token)` float32; zeros on padding.
        audio_codes, attention_mask: as in `HasrdEncoderOutput`.
        commitment_loss, codebook_loss: `(batch,)`, squared distances between latents and acoustic codes (mean over
            `codebook_dim`), summed over an utterance's tokens and books: divide by the tokens of the whole step.
    """

    audio_values: torch.FloatTensor | None = None
    audio_codes: torch.LongTensor | None = None
    attention_mask: torch.BoolTensor | None = None
    commitment_loss: torch.FloatTensor | None = None
    codebook_loss: torch.FloatTensor | None = None


@dataclass
class QuantizedStates:
    """
    states: eq. 3's sum of the books `(batch, tokens, dim)` float32, zeros on padding; codes: `(batch, books, tokens)`;
    commitment_loss, codebook_loss: as in `HasrdOutput`.
    """

    states: Tensor
    codes: Tensor
    commitment_loss: Tensor
    codebook_loss: Tensor
