"""What feature extractors of log mel energies share: checks, normalization of each mel bin, padding."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, SequenceFeatureExtractor

from .waveform_checks import check_sampling_rate, check_waveform, list_waveforms

WINDOW = 25  # ms
LEAST_DEVIATION = 1e-2  # nats, of a mel bin: one that moves less is constant, and its rounding is not scaled up


class LogMelFeatureExtractor(SequenceFeatureExtractor):
    """
    Log mel energies with zero mean and unit deviation in each mel bin, such that an utterance's features never depend
    on its batch.

    A subclass says how a waveform becomes energies (`log_mel`), what the shortest waveform is (`min_samples`), and
    what it calls its normalizations (`normalizations`: over the utterance, over a corpus, which is "global", and
    others, which do nothing).

    Raises:
        ValueError: no mel bin, an unknown normalization, statistics without "global", one of the two, or not one per
            mel bin.
    """

    model_input_names = ["input_features", "attention_mask"]
    normalizations: tuple[str, ...] = ("utterance", "global", "none")
    shortest = "frame"  # what `min_samples` is the length of

    def __init__(
        self,
        feature_size: int,
        sampling_rate: int,
        num_mel_bins: int,
        normalization: str,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        **kwargs: Any,
    ):
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, **kwargs | {"padding_value": 0.0})
        if normalization not in self.normalizations:
            raise ValueError(f"normalization must be one of {', '.join(self.normalizations)}, got {normalization!r}.")
        if normalization != "global" and (mean is not None or std is not None):
            raise ValueError(f'mean and std belong to normalization="global", got them with {normalization!r}.')
        lengths = [None if each is None else len(each) for each in (mean, std)]
        if lengths not in ([None, None], [num_mel_bins, num_mel_bins]):
            raise ValueError(f"Expected {num_mel_bins} values in mean and in std, one per mel bin, got {lengths}.")
        self.num_mel_bins = num_mel_bins
        self.normalization = normalization
        self.mean = mean
        self.std = std

    @property
    @abstractmethod
    def min_samples(self) -> int:
        """The shortest audio, in samples."""

    @abstractmethod
    def log_mel(self, waveform: Tensor) -> Tensor:
        """Log mel energies `(mel frames, mel bins)`, in nats, of a checked waveform `(samples,)`."""

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

        Returns `input_features` `(batch, frames, feature_size)` float32 and `attention_mask` `(batch, frames)`, 1 on
        real frames.

        Raises:
            ValueError: missing or wrong sampling rate, several channels, integer samples, NaN or infinity, audio
                shorter than one frame, a padding other than "longest", or "global" without statistics.
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
            ValueError: several channels, integer samples, NaN or infinity, less than one frame of audio.
        """
        return check_waveform(waveform, self.min_samples, self.shortest)

    def extract_frames(self, waveform: Tensor) -> Tensor:
        """Frames `(frames, feature_size)` of one checked utterance `(samples,)`."""
        energies = self.log_mel(waveform).double()
        if self.normalization == self.normalizations[0]:
            energies = (energies - energies.mean(dim=0)) / energies.std(dim=0, correction=0).clamp(min=LEAST_DEVIATION)
        if self.normalization == "global":
            if self.mean is None:
                raise ValueError('normalization="global" has no mean and std yet: call fit(waveforms) first.')
            energies = (energies - torch.tensor(self.mean)) / torch.tensor(self.std).clamp(min=LEAST_DEVIATION)
        return energies.float().reshape(-1, self.feature_size)

    def fit(self, waveforms: Iterable[np.ndarray | Tensor]) -> "LogMelFeatureExtractor":
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
