"""SpecAugment with adaptive time masks, on frames that may be stacks of spectrogram frames."""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def spec_augment(
    features: Tensor,
    num_frames: Tensor | Sequence[int],
    seeds: Tensor | Sequence[int],
    num_bins: int,
    num_frequency_masks: int = 2,
    num_time_masks: int = 20,
    time_multiplicity: float = 0.04,
    frequency_ratio: float = 27 / 80,
    time_ratio: float = 0.04,
) -> Tensor:
    """
    Features with bands of bins and spans of frames set to 0, which is the mean of normalized features.

    "augmented using SpecAugment with two frequency masks, twenty time masks, an adaptive multiplicity of 0.04, a
    maximum ratio of masked frequencies of 27/80 and a maximum ratio of masked time frames of 0.04" (content and
    context factors, section 2.4; Park et al., "SpecAugment on large scale datasets"): an utterance of t frames gets
    min(20, floor(0.04 t)) spans of 0 to floor(0.04 t) frames, none below 25 frames (0.75 s), and two bands of 0 to
    floor(27/80 bins) bins. Masks may overlap. All stacked frames of a frame lose the same bins.

    Args:
        features: `(batch, frames, stack x num_bins)`, on any device.
        num_frames: real frames of each utterance `(batch,)`; spans lie within them.
        seeds: one per utterance `(batch,)`; see `utterance_seed`, and give it the step as salt. An utterance's masks
            depend on its seed and its num_frames only.

    Raises:
        ValueError: features that are no stacks of num_bins, numbers of utterances that differ, or num_frames outside
            1..frames.
    """
    batch, frames, width = features.shape
    lengths, seeds = (each.tolist() if isinstance(each, Tensor) else list(each) for each in (num_frames, seeds))
    if width % num_bins != 0:
        raise ValueError(f"Expected stacks of num_bins={num_bins} per frame, got frames of {width} values.")
    if not len(lengths) == len(seeds) == batch:
        raise ValueError(f"{batch} utterances need as many num_frames and seeds, got {len(lengths)} and {len(seeds)}.")
    if not all(1 <= length <= frames for length in lengths):
        raise ValueError(f"num_frames must lie in 1..{frames}, got {lengths}.")

    bins = torch.zeros(batch, num_bins, dtype=torch.bool)
    times = torch.zeros(batch, frames, dtype=torch.bool)
    for row, (length, seed) in enumerate(zip(lengths, seeds)):
        generator = Generator().manual_seed(seed)
        bins[row] = draw_spans(num_frequency_masks, math.floor(frequency_ratio * num_bins), num_bins, generator)
        num_spans = min(num_time_masks, math.floor(time_multiplicity * length))
        times[row, :length] = draw_spans(num_spans, math.floor(time_ratio * length), length, generator)
    masked = times.to(features.device)[:, :, None] | bins.to(features.device).repeat(1, width // num_bins)[:, None]
    return features.masked_fill(masked, 0.0)


def draw_spans(num_spans: int, max_width: int, size: int, generator: Generator) -> Tensor:
    """Which of `size` positions `(size,)` lie in spans of 0..max_width positions, each width and place as likely."""
    widths, starts = torch.rand(2, num_spans, 1, dtype=torch.float64, generator=generator)
    widths = (widths * (max_width + 1)).floor()
    starts = (starts * (size - widths + 1)).floor()
    positions = torch.arange(size)
    return ((positions >= starts) & (positions < starts + widths)).any(dim=0)
