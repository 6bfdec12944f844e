"""Discriminators of waveforms: over periods, bands of complex spectrograms at several resolutions, and scales."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torchaudio.functional import resample

PERIODS = (2, 3, 5, 7, 11)  # samples
FFT_SIZES = (2048, 1024, 512)  # samples
BANDS = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))  # shares of the spectrum
SLOPE = 0.1  # of the leaky ReLU below zero
PEAK = 0.8  # of a discriminator's input


def scale_channels(channels: int, factor: float) -> int:
    """So many channels of a discriminator `factor` times as wide, at least one."""
    return max(1, round(channels * factor))


class FeatureStack(nn.Sequential):
    """Weight-normed convolutions, each with a leaky ReLU; gives the map after each of them."""

    def forward(self, hidden: Tensor) -> list[Tensor]:
        maps = []
        for convolution in self:
            hidden = nn.functional.leaky_relu(convolution(hidden), SLOPE)
            maps.append(hidden)
        return maps


class PeriodDiscriminator(nn.Module):
    """
    Reads every `period`th sample, each phase on its own (HiFi-GAN's multi-period discriminator with DAC's widths).

    Columns are a dimension of the batch, which equals two-dimensional convolutions one column wide.
    """

    def __init__(self, period: int, channel_factor: float = 1.0):
        super().__init__()
        self.period = period
        widths = [1, *(scale_channels(width, channel_factor) for width in (32, 128, 512, 1024, 1024))]
        strides = (3, 3, 3, 3, 1)
        self.stack = FeatureStack(
            *(
                weight_norm(nn.Conv1d(inputs, outputs, 5, stride, padding=2))
                for inputs, outputs, stride in zip(widths, widths[1:], strides)
            )
        )
        self.score = weight_norm(nn.Conv1d(widths[-1], 1, 3, padding=1))

    def forward(self, waveforms: Tensor) -> list[Tensor]:
        """`(batch, samples)` to maps `(batch, period, channels, frames)`, the last of which are the scores."""
        batch, samples = waveforms.shape
        waveforms = nn.functional.pad(waveforms[:, None], (0, -samples % self.period), mode="reflect")[:, 0]
        columns = waveforms.unflatten(1, (-1, self.period)).transpose(1, 2)  # (batch, period, frames)
        maps = self.stack(columns.reshape(batch * self.period, 1, -1))
        maps.append(self.score(maps[-1]))
        return [each.unflatten(0, (batch, self.period)) for each in maps]


class ScaleDiscriminator(nn.Module):
    """Reads the waveform at a `rate`th of its sampling rate (MelGAN's multi-scale discriminator with DAC's widths)."""

    def __init__(self, rate: int, channel_factor: float = 1.0):
        super().__init__()
        self.rate = rate
        widths = [1, *(scale_channels(width, channel_factor) for width in (16, 64, 256, 1024, 1024, 1024))]
        shapes = ((15, 1, 1), (41, 4, 4), (41, 4, 16), (41, 4, 64), (41, 4, 256), (5, 1, 1))
        self.stack = FeatureStack(
            *(
                weight_norm(
                    nn.Conv1d(
                        inputs,
                        outputs,
                        kernel,
                        stride,
                        padding=kernel // 2,
                        groups=math.gcd(groups, inputs, outputs),
                    )
                )
                for inputs, outputs, (kernel, stride, groups) in zip(widths, widths[1:], shapes)
            )
        )
        self.score = weight_norm(nn.Conv1d(widths[-1], 1, 3, padding=1))

    def forward(self, waveforms: Tensor) -> list[Tensor]:
        """`(batch, samples)` to maps `(batch, channels, frames)`, the last of which are the scores."""
        maps = self.stack(resample(waveforms, self.rate, 1)[:, None])
        return [*maps, self.score(maps[-1])]


class SpectrogramDiscriminator(nn.Module):
    """
    Reads real and imaginary parts of a spectrogram, each band with convolutions of its own (DAC, section 3.3).

    The window of `fft_size` samples is Hann's and moves by a quarter of it. A frame's window lies around the middle of
    its hop, so there are ceil(samples / hop) frames.
    """

    def __init__(self, fft_size: int, channel_factor: float = 1.0, bands: Sequence[tuple[float, float]] = BANDS):
        super().__init__()
        self.fft_size, self.hop_length = fft_size, fft_size // 4
        bins = fft_size // 2 + 1
        self.bands = [(int(low * bins), int(high * bins)) for low, high in bands]
        width = scale_channels(32, channel_factor)
        shapes = ((2, (3, 9), 1), (width, (3, 9), 2), (width, (3, 9), 2), (width, (3, 9), 2), (width, (3, 3), 1))
        self.stacks = nn.ModuleList(
            FeatureStack(
                *(
                    weight_norm(nn.Conv2d(inputs, width, kernel, (1, stride), padding=(1, kernel[1] // 2)))
                    for inputs, kernel, stride in shapes
                )
            )
            for _ in bands
        )
        self.score = weight_norm(nn.Conv2d(width, 1, 3, padding=1))
        self.register_buffer("window", torch.hann_window(fft_size), persistent=False)

    def forward(self, waveforms: Tensor) -> list[Tensor]:
        """`(batch, samples)` to maps `(batch, channels, frames, bins)`, the last of which are the scores."""
        spectrogram = self.spectrogram(waveforms)
        maps, ends = [], []
        for (low, high), stack in zip(self.bands, self.stacks):
            of_band = stack(spectrogram[..., low:high])
            maps += of_band
            ends.append(of_band[-1])
        return [*maps, self.score(torch.cat(ends, dim=-1))]

    def spectrogram(self, waveforms: Tensor) -> Tensor:
        """`(batch, 2, frames, bins)`: real and imaginary parts, in float32."""
        samples, margin = waveforms.shape[1], (self.fft_size - self.hop_length) // 2
        padding = (margin, margin + -samples % self.hop_length)
        padded = nn.functional.pad(waveforms.float()[:, None], padding, mode="reflect")[:, 0]
        spectrogram = torch.stft(
            padded, self.fft_size, self.hop_length, window=self.window, center=False, return_complex=True
        )
        return torch.view_as_real(spectrogram).permute(0, 3, 2, 1)


class CodecDiscriminators(nn.Module):
    """
    The discriminators of HASRD (section 2.3), which are DAC's: multi-period, and complex spectrograms at several
    resolutions in several bands.

    The text names multi-scale discriminators as well; no configuration that DAC released has any, nor do the defaults
    here.

    Args:
        periods: of the multi-period discriminators, in samples.
        fft_sizes: of the spectrograms, in samples.
        rates: of the multi-scale discriminators, by which the sampling rate is divided.
        channel_factor: 1 gives DAC's widths.

    Raises:
        ValueError: no discriminator at all.
    """

    def __init__(
        self,
        periods: Sequence[int] = PERIODS,
        fft_sizes: Sequence[int] = FFT_SIZES,
        rates: Sequence[int] = (),
        channel_factor: float = 1.0,
    ):
        super().__init__()
        if not (periods or fft_sizes or rates):
            raise ValueError("Give at least one of periods, fft_sizes and rates; got none of them.")
        self.discriminators = nn.ModuleList(
            [
                *(PeriodDiscriminator(period, channel_factor) for period in periods),
                *(ScaleDiscriminator(rate, channel_factor) for rate in rates),
                *(SpectrogramDiscriminator(fft_size, channel_factor) for fft_size in fft_sizes),
            ]
        )

    def forward(self, waveforms: Tensor) -> list[list[Tensor]]:
        """
        waveforms: `(batch, samples)`, zero-padded ones as they are; each row is judged on its own.

        Returns for each discriminator its maps, whose first dimension is the batch; the last map holds the scores,
        1 for real and 0 for made.
        """
        waveforms = self.normalize(waveforms)
        return [discriminator(waveforms) for discriminator in self.discriminators]

    def normalize(self, waveforms: Tensor) -> Tensor:
        """Each row without its mean, and as loud as its peak allows; silence stays silence."""
        waveforms = waveforms - waveforms.mean(dim=1, keepdim=True)
        return PEAK * waveforms / (waveforms.abs().amax(dim=1, keepdim=True) + 1e-9)
