"""Where to cut audio: windows to encode it in, chunks with context to decode it in, stretches to train on."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from .codec_layers import RESIDUAL_KERNEL

OVERLAP = 1 / 5  # of a window, shared by neighbours


@dataclass
class Piece:
    """
    A stretch of tokens that is computed at once, and the part of it that is kept.

    start, end: tokens that are computed; keep_start, keep_end: those that are kept, all counted from the beginning of
    the recording.
    """

    start: int
    end: int
    keep_start: int
    keep_end: int

    @property
    def kept(self) -> slice:
        """The tokens to keep, counted from the beginning of the piece."""
        return slice(self.keep_start - self.start, self.keep_end - self.start)


def encoding_windows(total: int, window: int) -> list[Piece]:
    """
    Windows of `window` tokens over `total`, joined at the middles of their overlaps; the last window is full, too.

    Every token comes from the window in whose middle it lies, as in `WindowedEncodingMixin`.
    """
    window = min(window, total)
    hop = max(window - int(OVERLAP * window), 1)
    starts = [*range(0, total - window, hop), total - window]
    seams = [0, *((start + previous + window) // 2 for previous, start in zip(starts, starts[1:])), total]
    return [Piece(start, start + window, *seams[index : index + 2]) for index, start in enumerate(starts)]


def decoding_chunks(total: int, chunk: int, context: int) -> list[Piece]:
    """Chunks of `chunk` tokens over `total`, each computed with `context` more on both sides, where there are any."""
    return [
        Piece(max(start - context, 0), min(start + chunk + context, total), start, min(start + chunk, total))
        for start in range(0, total, chunk)
    ]


def decoder_context(ratios: Sequence[int], dilations: Sequence[int]) -> int:
    """Tokens on each side of one that a `WaveformDecoder` looks at, 10 for the paper's."""
    radius = RESIDUAL_KERNEL // 2  # of the last convolution, in samples; from there backwards
    for ratio in reversed(ratios):
        radius += sum(RESIDUAL_KERNEL // 2 * dilation for dilation in dilations)
        radius = ceil(radius / ratio) + 1  # a transposed convolution lets two neighbours meet
    return radius + RESIDUAL_KERNEL // 2


def cut_stretches(states: Tensor, mask: Tensor, first_tokens: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """
    `num_tokens` tokens of each utterance from `first_tokens` `(batch,)` on, of `states` `(batch, tokens, dim)`; where
    an utterance is over, zeros. With their mask, `(batch, num_tokens)`, as `mask` is that of all tokens.

    Raises:
        ValueError: a stretch that begins behind the end of its utterance, or before its beginning.
    """
    lengths = mask.sum(dim=1)
    if bool(((first_tokens < 0) | (first_tokens >= lengths)).any()):
        raise ValueError(
            f"a stretch must begin in its utterance; got first tokens {first_tokens.tolist()} in utterances of "
            f"{lengths.tolist()} tokens."
        )
    tokens = first_tokens[:, None] + torch.arange(num_tokens, device=mask.device)
    is_real = tokens < lengths[:, None]
    stretches = states.gather(1, tokens.clamp(max=states.shape[1] - 1)[..., None].expand(-1, -1, states.shape[2]))
    return stretches.masked_fill(~is_real[..., None], 0.0), is_real
