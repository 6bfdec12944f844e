"""Waveform to the log mel frames of BEST-RQ and HASRD, four of which are 512 samples."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchaudio.compliance import kaldi

from .log_mel_features import WINDOW, LogMelFeatureExtractor

HOP = 8  # ms
FRAMES_PER_TOKEN = 4
BLOCK = 7500  # frames, a minute, whose energies are computed at once
MARGIN = 2  # frames on each side: a window reaches 8.5 ms beyond its own 8


class BestRQFeatureExtractor(LogMelFeatureExtractor):
    """
    Normalized log mel energies of 8 ms frames (HASRD, section 2.1, "an F-dimensional log mel-spectrogram").

        waveform -> a whole number of tokens -> log mel energies (Kaldi's, without dither) -> `normalization`

    Audio of n samples has `ceil(n / 512)` tokens and four times as many mel frames. For that it is lengthened at its
    end to a multiple of 512 by its own mirror image, as Kaldi's `snip_edges=False` does at both ends for the windows
    that reach out: mel frame t is centred on samples 128 t to 128 t + 127. The shortest audio is one window, 400
    samples. Energies are those of samples in -1 to 1, where Kaldi's floor, -15.9 nats, is near the noise of 16 bits;
    they are raised to it. Silence gives zeros, with "global" the normalized floor, at every frame.

    Args:
        num_mel_bins: per 8 ms.
        sampling_rate: in Hz.
        normalization: zero mean and unit deviation of each mel bin over the utterance ("sentence"; Table 3 has both),
            or over a corpus ("global", with `mean` and `std`, which `fit` measures).
        mean: of each mel bin over a corpus, in nats.
        std: its standard deviation, in nats.

    Raises:
        ValueError: no mel bin, an unknown normalization, statistics without "global", one of the two, or not one per
            mel bin.
    """

    normalizations = ("sentence", "global")
    shortest = "window"

    def __init__(
        self,
        num_mel_bins: int = 80,
        sampling_rate: int = 16000,
        normalization: str = "sentence",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **kwargs: Any,
    ):
        if num_mel_bins < 1:
            raise ValueError(f"num_mel_bins must be at least 1; got {num_mel_bins}.")
        given_size = kwargs.pop("feature_size", num_mel_bins)  # as in a saved file
        if given_size != num_mel_bins:
            raise ValueError(f"feature_size is num_mel_bins = {num_mel_bins}, got {given_size}: leave it out.")
        super().__init__(num_mel_bins, sampling_rate, num_mel_bins, normalization, mean, std, **kwargs)

    @property
    def min_samples(self) -> int:
        """The shortest audio, in samples: one window."""
        return WINDOW * self.sampling_rate // 1000

    @property
    def samples_per_token(self) -> int:
        """512 at 16 kHz."""
        return FRAMES_PER_TOKEN * HOP * self.sampling_rate // 1000

    def log_mel(self, waveform: Tensor) -> Tensor:
        """
        Log mel energies `(mel frames, mel bins)`, in nats, of a checked waveform `(samples,)`.

        Kaldi's copies of every sample, one for each window that sees it, are those of `BLOCK` frames at a time.
        """
        missing = -len(waveform) % self.samples_per_token
        waveform = torch.cat([waveform, waveform[len(waveform) - missing :].flip(0)])
        hop = self.samples_per_token // FRAMES_PER_TOKEN
        blocks = []
        for first in range(0, len(waveform) // hop, BLOCK):
            start = max(first - MARGIN, 0)
            energies = self._block_energies(waveform[start * hop : (first + BLOCK + MARGIN) * hop])
            blocks.append(energies[first - start :][:BLOCK])
        return torch.cat(blocks)

    @torch.autocast("cpu", enabled=False)  # half precision cannot hold the range of the energies
    def _block_energies(self, waveform: Tensor) -> Tensor:
        """Log mel energies `(mel frames, mel bins)` of samples at whose ends the audio is mirrored."""
        return kaldi.fbank(
            waveform[None],
            num_mel_bins=self.num_mel_bins,
            sample_frequency=self.sampling_rate,
            frame_length=WINDOW,
            frame_shift=HOP,
            snip_edges=False,
            dither=0.0,
        )


__all__ = ["BestRQFeatureExtractor"]
