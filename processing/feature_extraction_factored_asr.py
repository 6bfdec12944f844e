"""Waveform to stacked log mel filter-bank energies, such that an utterance's features never depend on its batch."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchaudio.compliance import kaldi
from transformers import BatchFeature, SequenceFeatureExtractor

from .waveform_checks import check_sampling_rate, check_waveform, list_waveforms

WINDOW = 25  # ms
HOP = 10  # ms
SILENCE = 1e-7  # standard deviation of a waveform below which there is nothing to scale up: the last of 24 bits
FLOOR = -7.0  # nats; the loudest of speech of unit deviation is near 12, so this is 80 dB below, 16 bits' own noise
LEAST_DEVIATION = 1e-2  # nats, of a mel bin: one that moves less is constant, and its rounding is not scaled up
NORMALIZATIONS = ("utterance", "global", "none")


class FactoredASRFeatureExtractor(SequenceFeatureExtractor):
    """
    Log filter-bank energies of 30 ms frames (content and context factors, section 2.4, "Data Pre-Processing").

    "audio signals are normalized to have zero mean, and unit standard deviation. Following normalization we extract,
    as input, 64-dimensional Log-Filterbank Energy (LFBE) features. Three frames are then stacked to generate
    192-dimensional inputs":

        waveform -> zero mean and unit deviation -> log mel energies (Kaldi's) -> `normalization` -> stacks of three

    The first step is taken per utterance: loudness changes nothing. The paper does not say how the energies themselves
    are scaled; `normalization` does it per mel bin, and zero is then the mean, which SpecAugment masks with. Nor does
    it name a floor: energies below -7, 80 dB under loud speech, are raised to it, because digital silence between
    words (12 nats lower) would otherwise decide the statistics. Frames lie within the utterance, and the one or two
    mel frames that fill no stack are dropped: audio of n samples has `(1 + (n - 400) // 160) // 3` frames, and the
    shortest is 720 samples, 45 ms. Silence gives zeros, or with "global" and "none" the floor, at every frame.

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

    model_input_names = ["input_features", "attention_mask"]

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
        if kwargs.setdefault("feature_size", feature_size) != feature_size:
            raise ValueError(
                f"feature_size is stack x num_mel_bins = {feature_size}, got {kwargs['feature_size']}: leave it out."
            )
        super().__init__(sampling_rate=sampling_rate, **kwargs | {"padding_value": 0.0})
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization must be one of {', '.join(NORMALIZATIONS)}, got {normalization!r}.")
        if normalization != "global" and (mean is not None or std is not None):
            raise ValueError(f'mean and std belong to normalization="global", got them with {normalization!r}.')
        lengths = [None if each is None else len(each) for each in (mean, std)]
        if lengths not in ([None, None], [num_mel_bins, num_mel_bins]):
            raise ValueError(f"Expected {num_mel_bins} values in mean and in std, one per mel bin, got {lengths}.")
        self.num_mel_bins = num_mel_bins
        self.stack = stack
        self.normalization = normalization
        self.mean = mean
        self.std = std

    @property
    def min_samples(self) -> int:
        """The shortest audio, in samples: one stacked frame."""
        return (WINDOW + (self.stack - 1) * HOP) * self.sampling_rate // 1000

    def __call__(
        self,
        raw_speech: np.ndarray | Tensor | list,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool = True,
        padding: bool | str = "longest",
    ) -> BatchFeature:
        """
        Features of one waveform, or of a list of waveforms padded with zeros to the longest.

        raw_speech: mono floating-point samples in -1 to 1, `(samples,)`, or a list of such.
        sampling_rate: of `raw_speech`, in Hz; must be given.

        Returns `input_features` `(batch, frames, stack x mel bins)` float32 and `attention_mask` `(batch, frames)`, 1
        on real frames.

        Raises:
            ValueError: missing or wrong sampling rate, several channels, integer samples, NaN or infinity, audio
                shorter than one stacked frame, a padding other than "longest", or "global" without statistics.
        """
        check_sampling_rate(sampling_rate, self.sampling_rate)
        if padding not in (True, "longest"):
            raise ValueError(f'Only padding="longest" exists, got {padding!r}: call once per utterance for none.')
        waveforms = [self.check_waveform(waveform) for waveform in list_waveforms(raw_speech)]
        frames = {"input_features": [self.extract_frames(waveform).numpy() for waveform in waveforms]}
        return self.pad(
            frames, padding=True, return_attention_mask=return_attention_mask, return_tensors=return_tensors
        )

    def check_waveform(self, waveform: np.ndarray | Tensor | list) -> Tensor:
        """
        The waveform as a float32 tensor `(samples,)` on the CPU.

        Raises:
            ValueError: several channels, integer samples, NaN or infinity, less than one stacked frame of audio.
        """
        return check_waveform(waveform, self.min_samples, "stacked frame")

    def extract_frames(self, waveform: Tensor) -> Tensor:
        """Frames `(frames, stack x mel bins)` of one checked utterance `(samples,)`, the first 10 ms first in each."""
        energies = self.log_mel(waveform).double()
        if self.normalization == "utterance":
            energies = (energies - energies.mean(dim=0)) / energies.std(dim=0, correction=0).clamp(min=LEAST_DEVIATION)
        if self.normalization == "global":
            if self.mean is None:
                raise ValueError('normalization="global" has no mean and std yet: call fit(waveforms) first.')
            energies = (energies - torch.tensor(self.mean)) / torch.tensor(self.std).clamp(min=LEAST_DEVIATION)
        return energies.float().reshape(-1, self.feature_size)

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

    def fit(self, waveforms: Iterable[np.ndarray | Tensor]) -> "FactoredASRFeatureExtractor":
        """
        Measure `mean` and `std` for "global" over utterances `(samples,)` at `sampling_rate`, one at a time.

        Raises:
            ValueError: another normalization, no audio, or some that `check_waveform` refuses.
        """
        if self.normalization != "global":
            raise ValueError(f'Only normalization="global" has statistics to fit, got {self.normalization!r}.')
        num_frames, total, squares = 0, torch.zeros(self.num_mel_bins), torch.zeros(self.num_mel_bins)
        for waveform in waveforms:
            energies = self.log_mel(self.check_waveform(waveform)).double()  # so that millions of frames add up
            num_frames += len(energies)
            total = total + energies.sum(dim=0)
            squares = squares + energies.square().sum(dim=0)
        if num_frames == 0:
            raise ValueError("Got no audio to fit the statistics to.")
        mean = total / num_frames
        self.mean = mean.tolist()
        self.std = (squares / num_frames - mean**2).clamp(min=0.0).sqrt().tolist()
        return self


__all__ = ["FactoredASRFeatureExtractor"]
