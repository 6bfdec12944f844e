"""Waveform to stacked log mel filter-bank energies, such that an utterance's features never depend on its batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchaudio.compliance import kaldi

from .log_mel_features import WINDOW, LogMelFeatureExtractor

HOP = 10  # ms
SILENCE = 1e-7  # standard deviation of a waveform below which there is nothing to scale up: the last of 24 bits
FLOOR = -7.0  # nats; the loudest of speech of unit deviation is near 12, so this is 80 dB below, 16 bits' own noise


class FactoredASRFeatureExtractor(LogMelFeatureExtractor):
    """
    Log filter-bank energies of 30 ms frames (content and context factors, section 2.4, "Data Pre-Processing").

    "audio signals are normalized to have zero mean, and unit standard deviation. Following normalization we extract,
    as input, 64-dimensional Log-Filterbank Energy (LFBE) features. Three frames are then stacked to generate
    192-dimensional inputs":

        waveform -> zero mean and unit deviation -> log mel energies (Kaldi's) -> `normalization` -> stacks of three

    The first step is taken per utterance: loudness changes nothing. The paper does not say how the energies themselves
    are scaled; `normalization` does it per mel bin, and zero is then the mean, which SpecAugment masks with. Nor does
    it name a floor: energies below -7, 80 dB under loud speech, are raised to it, because digital silence between
    words (9 nats lower) would otherwise decide the statistics. Frames lie within the utterance, and at its end up to
    `stack` - 1 mel frames that fill no stack are dropped: with stacks of three, audio of n samples has
    `(1 + (n - 400) // 160) // 3` frames, and the shortest is 720 samples, 45 ms. Silence gives zeros, or with "global"
    and "none" the floor, at every frame.

    Args:
        num_mel_bins: per 10 ms.
        sampling_rate: in Hz.
        stack: how many frames of 10 ms make one.
        normalization: zero mean and unit deviation of each mel bin over the utterance ("utterance"), over a corpus
            ("global", with `mean` and `std`, which `fit` measures), or "none".
        mean: of each mel bin over a corpus, in nats.
        std: its standard deviation, in nats.

    Raises:
        ValueError: sizes below 1, an unknown normalization, statistics without "global", one of the two, or not one
            per mel bin.
    """

    shortest = "stacked frame"

    def __init__(
        self,
        num_mel_bins: int = 64,
        sampling_rate: int = 16000,
        stack: int = 3,
        normalization: str = "utterance",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **kwargs: Any,
    ):
        if stack < 1 or num_mel_bins < 1:
            raise ValueError(f"stack and num_mel_bins must be at least 1; got {stack} and {num_mel_bins}.")
        feature_size = stack * num_mel_bins
        given_size = kwargs.pop("feature_size", feature_size)  # as in a saved file
        if given_size != feature_size:
            raise ValueError(f"feature_size is stack x num_mel_bins = {feature_size}, got {given_size}: leave it out.")
        super().__init__(feature_size, sampling_rate, num_mel_bins, normalization, mean, std, **kwargs)
        self.stack = stack

    @property
    def min_samples(self) -> int:
        """The shortest audio, in samples: one stacked frame."""
        return (WINDOW + (self.stack - 1) * HOP) * self.sampling_rate // 1000

    @torch.autocast("cpu", enabled=False)  # half precision cannot hold the range of the energies
    def log_mel(self, waveform: Tensor) -> Tensor:
        """Log mel energies `(mel frames, mel bins)`, in nats, of the mel frames of `(samples,)` that fill stacks."""
        waveform = waveform.double()
        waveform = (waveform - waveform.mean()) / waveform.std(correction=0).clamp(min=SILENCE)
        energies = kaldi.fbank(
            waveform.float()[None],
            num_mel_bins=self.num_mel_bins,
            sample_frequency=self.sampling_rate,
            frame_length=WINDOW,
            frame_shift=HOP,
        )
        return energies[: len(energies) // self.stack * self.stack].clamp(min=FLOOR)


__all__ = ["FactoredASRFeatureExtractor"]
