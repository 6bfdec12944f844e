"""
Losses of a neural codec (HASRD, section 2.3; DAC): mel spectrograms at several resolutions, least-squares GAN, feature
matching.

Each is a mean over the segments of an optimizer step: `num_segments` are those of all its micro-batches and processes,
these of the batch itself when not given.
"""

import warnings
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torchaudio.functional import melscale_fbanks

MEL_WINDOWS = (32, 64, 128, 256, 512, 1024, 2048)  # samples; "window lengths [32, 64, 128, 256, 512, 1024, 2048]"
MEL_BINS = (5, 10, 20, 40, 80, 160, 320)  # "corresponding mel bins [5, 10, 20, 40, 80, 160, 320]"
FLOOR = 1e-5  # of a magnitude, before its logarithm

Maps = list[list[Tensor]]  # of each discriminator, `(batch, ...)` each, the scores last


def multi_scale_mel_loss(
    waveforms: Tensor,
    targets: Tensor,
    windows: Sequence[int] = MEL_WINDOWS,
    num_mels: Sequence[int] = MEL_BINS,
    sampling_rate: int = 16000,
    num_segments: Tensor | int | None = None,
) -> Tensor:
    """`mel_distances`, mean over segments. In decades, summed over windows."""
    distances = mel_distances(waveforms, targets, windows, num_mels, sampling_rate)
    return distances.sum() / (len(distances) if num_segments is None else num_segments)


def mel_distances(
    waveforms: Tensor,
    targets: Tensor,
    windows: Sequence[int] = MEL_WINDOWS,
    num_mels: Sequence[int] = MEL_BINS,
    sampling_rate: int = 16000,
) -> Tensor:
    """
    How far the log mel spectrograms of two waveforms `(batch, samples)` lie apart: `(batch,)`, in decades.

    For each window the mean of |log10 - log10| over bins and frames, summed over windows (DAC's training loss: Hann
    windows that move by a quarter, Slaney's mel bins on magnitudes not less than 1e-5). A narrow window leaves some
    bins without a frequency; they count as equal.

    Raises:
        ValueError: as many numbers of bins as windows are needed; waveforms of other lengths, or that are not longer
            than half a window, which is what is mirrored at their ends.
    """
    if len(windows) != len(num_mels) or not windows:
        raise ValueError(f"Give as many numbers of mel bins as windows; got {list(num_mels)} and {list(windows)}.")
    check_waveform_pair(waveforms, targets, max(windows))
    distances = 0.0
    for window, bins in zip(windows, num_mels):
        with torch.no_grad():
            expected = log_mel_spectrogram(targets, window, bins, sampling_rate)
        difference = log_mel_spectrogram(waveforms, window, bins, sampling_rate) - expected
        distances = distances + difference.abs().flatten(1).mean(dim=1)
    return distances


def check_waveform_pair(waveforms: Tensor, targets: Tensor, window: int) -> None:
    """Raise ValueError unless both are `(batch, samples)` of one shape and longer than half a window."""
    if waveforms.shape != targets.shape or waveforms.ndim != 2:
        raise ValueError(
            f"Expected two waveforms of one shape (batch, samples); got {tuple(waveforms.shape)} and "
            f"{tuple(targets.shape)}."
        )
    if waveforms.shape[1] <= window // 2:
        raise ValueError(f"A window of {window} samples needs more than {window // 2}; got {waveforms.shape[1]}.")


def log_mel_spectrogram(waveforms: Tensor, window: int, num_mels: int, sampling_rate: int = 16000) -> Tensor:
    """`(batch, samples)` to log10 of mel magnitudes `(batch, num_mels, frames)`, in decades."""
    filters = mel_filters(window, num_mels, sampling_rate).to(waveforms.device)
    return (filters.mT @ magnitude_spectrogram(waveforms, window)).clamp(min=FLOOR).log10()


def magnitude_spectrogram(waveforms: Tensor, window: int) -> Tensor:
    """`(batch, samples)` to magnitudes `(batch, window // 2 + 1, frames)`: Hann windows that move by a quarter."""
    hann = torch.hann_window(window, device=waveforms.device)
    return torch.stft(waveforms.float(), window, window // 4, window=hann, return_complex=True).abs()


@lru_cache
def mel_filters(window: int, num_mels: int, sampling_rate: int) -> Tensor:
    """Slaney's triangles of unit area `(window // 2 + 1, num_mels)`, from 0 Hz to half the sampling rate."""
    with warnings.catch_warnings():  # of bins without a frequency
        warnings.filterwarnings("ignore", message="At least one mel filterbank")
        return melscale_fbanks(
            window // 2 + 1, 0.0, sampling_rate / 2, num_mels, sampling_rate, norm="slaney", mel_scale="slaney"
        )


def discriminator_loss(real: Maps, made: Maps, num_segments: Tensor | int | None = None) -> Tensor:
    """Scores of real segments to 1, of made ones to 0: squared errors, summed over discriminators. Unitless."""
    return sum(
        segment_mean((1 - of_real[-1]).square(), num_segments) + segment_mean(of_made[-1].square(), num_segments)
        for of_real, of_made in zip(real, made, strict=True)
    )


def generator_loss(made: Maps, num_segments: Tensor | int | None = None) -> Tensor:
    """Scores of made segments to 1: squared errors, summed over discriminators. Unitless."""
    return sum(segment_mean((1 - of_made[-1]).square(), num_segments) for of_made in made)


def feature_matching_loss(real: Maps, made: Maps, num_segments: Tensor | int | None = None) -> Tensor:
    """
    How far the discriminators' maps of made segments are from those of the real ones, which stand still: the mean of
    |difference| of each map but the scores, summed over maps. In the maps' unit.
    """
    return sum(
        segment_mean((theirs - ours.detach()).abs(), num_segments)
        for of_real, of_made in zip(real, made, strict=True)
        for ours, theirs in zip(of_real[:-1], of_made[:-1], strict=True)
    )


def segment_mean(values: Tensor, num_segments: Tensor | int | None) -> Tensor:
    """The mean of `(batch, ...)` over each segment, summed over the batch, divided by `num_segments`."""
    return values.flatten(1).mean(dim=1).sum() / (len(values) if num_segments is None else num_segments)
