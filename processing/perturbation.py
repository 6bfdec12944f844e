"""
Perturbations of clean speech: noise at an SNR, bit crush, speed (StableToken, appendices B.3 and D).

Everything here is a function of the utterance's own samples, its own length and its own seed, so that two models, two
batches or two processes meet the same noise:

    perturber = Perturber(TRAINING_PERTURBATIONS, noise_clips)
    seeds = [utterance_seed(waveform, salt=epoch) for waveform in utterances]
    perturbed = perturber(waveforms, num_samples, seeds)  # .waveforms (batch, samples), .names, .levels

Random numbers are drawn on the CPU, one generator per utterance, and filtered and mixed on the waveforms' device: a
GPU run meets the noise of a CPU run. Results are equal bit for bit under one number of threads, and to 1e-7 under
another or on a GPU (FFTs sum differently).
"""

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .audio_reading import SAMPLING_RATE

LOWEST_FREQUENCY = 20.0  # Hz, coloured noise is flat below it
PAUSE_SHARE = 0.01  # a crop with less than this share of its clip's mean power is a pause of the clip

NOISE_EXPONENTS = {"gaussian": 0.0, "pink": 1.0, "brown": 2.0}  # power spectral density ~ 1 / frequency ** exponent
KINDS = (*NOISE_EXPONENTS, "bit_crush", "real")


@dataclass(frozen=True)
class Perturbation:
    """
    One row of the paper's Table 9 or 13: what is done to the waveform, and the range that its level is drawn from.

    kind: one of `KINDS`. minimum, maximum: SNR in dB, or whole bits for `bit_crush`, both ends included, equal for one
    point. Raises ValueError for an unknown kind, an empty range and bit depths that are no whole numbers in 1..24.
    """

    name: str
    kind: str
    minimum: float
    maximum: float

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(
                f"Unknown kind {self.kind!r} of perturbation {self.name!r}: choose from {', '.join(KINDS)}."
            )
        if not (math.isfinite(self.minimum) and math.isfinite(self.maximum) and self.minimum <= self.maximum):
            raise ValueError(
                f"Perturbation {self.name!r} needs a finite minimum <= maximum, got {self.minimum} and {self.maximum}."
            )
        if self.kind == "bit_crush" and not {self.minimum, self.maximum} <= set(range(1, 25)):
            raise ValueError(
                f"Bit depths of {self.name!r} must be whole numbers in 1..24, got {self.minimum} and {self.maximum}."
            )

    def draw_level(self, generator: Generator) -> float:
        """A level, uniform over the range: SNR in dB, or a whole number of bits."""
        if self.kind == "bit_crush":
            return float(torch.randint(int(self.minimum), int(self.maximum) + 1, (), generator=generator))
        share = float(torch.rand((), dtype=torch.float64, generator=generator))
        return self.minimum + share * (self.maximum - self.minimum)


# Table 9: "one perturbation type is randomly selected", "the intensity [...] is then uniformly sampled"
TRAINING_PERTURBATIONS = (
    Perturbation("gaussian", "gaussian", 16.0, 30.0),  # 16 < SNR < 30
    Perturbation("pink", "pink", 16.0, 24.0),  # 16 < SNR < 24
    Perturbation("brown", "brown", 12.0, 24.0),  # 12 < SNR < 24
    Perturbation("bit_crush", "bit_crush", 8.0, 14.0),  # 8 < bit depth < 14
    Perturbation("real", "real", 12.0, 24.0),  # 12 < SNR < 24, ESC-10 classes excluded
)

# Table 13, one condition each
EVALUATION_PERTURBATIONS = (
    Perturbation("gaussian", "gaussian", 25.0, 25.0),
    Perturbation("pink", "pink", 22.0, 22.0),
    Perturbation("brown", "brown", 16.0, 16.0),
    Perturbation("bit_crush", "bit_crush", 10.0, 10.0),
    Perturbation("real", "real", 16.0, 16.0),  # the 40 ESC-50 classes outside ESC-10
    Perturbation("real_ood", "real", 16.0, 16.0),  # the ESC-10 classes, never met in training
)


@dataclass(frozen=True)
class PerturbedWaveforms:
    """What `Perturber` returns: waveforms `(batch, samples)`; per utterance the name and level (dB or bits) drawn."""

    waveforms: Tensor
    names: list[str]
    levels: list[float]


def coloured_noise(
    num_samples: int,
    exponent: float,
    generator: Generator,
    device: torch.device | str = "cpu",
    sampling_rate: int = SAMPLING_RATE,
) -> Tensor:
    """
    Noise `(num_samples,)` of unit RMS whose power spectral density falls as `1 / frequency ** exponent`.

    exponent 0 is white (Gaussian), 1 pink (-3.01 dB per octave), 2 brown (-6.02 dB per octave). White noise is
    filtered in the frequency domain, at the next length >= num_samples that an FFT handles fast. The density is flat
    below 20 Hz and zero at 0 Hz: a power law down to the lowest bin would put nearly all of brown noise's power into
    rumble that nobody hears, the more so the longer the utterance, and an SNR would mean little.

    Raises ValueError unless num_samples >= 1.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
    white = _white_noise(num_samples, exponent, generator)
    return _colour(white.to(device), num_samples, exponent, sampling_rate)


def mix_at_snr(waveform: Tensor, noise: Tensor, snr_db: float | Tensor) -> Tensor:
    """
    waveform + noise `(..., samples)`, the noise scaled so that the RMS ratio over the whole clip is snr_db dB.

    snr_db: a number or `(...)`. A silent waveform comes back unchanged: nothing is `snr_db` below silence. The sum is
    not clipped to [-1, 1]. Raises ValueError for different lengths and for silent noise.
    """
    if waveform.shape[-1] != noise.shape[-1]:
        raise ValueError(
            f"waveform has {waveform.shape[-1]} samples, noise {noise.shape[-1]}: crop or loop the noise first."
        )
    if not bool((_mean_power(noise) > 0).all()):
        raise ValueError("The noise is silent, it cannot be scaled to an SNR.")
    return _mix(waveform, noise, torch.as_tensor(snr_db, dtype=torch.float64, device=waveform.device))


def bit_crush(waveform: Tensor, bit_depth: float) -> Tensor:
    """
    The waveform `(..., samples)` rounded to steps of 1 / q, q = 2 ** bit_depth / 2 + 1, without dither, as in
    audiomentations.

    Raises ValueError unless 1 <= bit_depth <= 24.
    """
    if not 1 <= bit_depth <= 24:
        raise ValueError(f"bit_depth must lie in 1..24, got {bit_depth}.")
    steps = 2**bit_depth / 2 + 1
    return torch.round(waveform * steps) / steps


def change_speed(waveform: Tensor, factor: float) -> Tensor:
    """
    The waveform `(..., samples)` played factor times faster, `(..., round(samples / factor))`; the pitch follows.

    Band-limited resampling in the frequency domain, the classical speed perturbation for factors of 0.9 and 1.1.
    Raises ValueError unless 0.25 <= factor <= 4 and at least one sample is left.
    """
    if not 0.25 <= factor <= 4:
        raise ValueError(f"factor must lie in 0.25..4, got {factor}.")
    num_samples = round(waveform.shape[-1] / factor)
    if num_samples < 1:
        raise ValueError(f"A waveform of {waveform.shape[-1]} samples is too short for a speed of {factor}.")
    resampled_length = _fast_fft_length(num_samples + 64)  # 64 zeros keep the end from ringing into the beginning
    fft_length = round(resampled_length * factor)
    spectrum = torch.fft.rfft(waveform, n=fft_length)
    resampled = torch.fft.irfft(spectrum, n=resampled_length) * (resampled_length / fft_length)
    return resampled[..., :num_samples]


def utterance_seed(waveform: Tensor | Sequence[float], salt: int = 0) -> int:
    """
    A seed in 0 .. 2 ** 32 - 1 from an utterance's samples `(samples,)` without padding, taken as float32, and a salt.

    The same utterance has the same seed in any batch, order or process. Give the epoch (or any other whole number of
    at most 63 bits) as the salt for fresh noise; salts below 2 ** 32 never share a seed for one utterance.
    """
    samples = torch.as_tensor(waveform).detach().to("cpu", torch.float32).contiguous()
    checksum = zlib.crc32(samples.numpy())
    return zlib.crc32(salt.to_bytes(8, "little", signed=True), checksum)


class Perturber:
    """
    The augmentation A(.) of StableToken, section 2.3: each utterance meets one perturbation, drawn with its level by
    its own seed. Levels are uniform over the range. Real noise is a clip of `noise_clips`, each equally likely, which
    is cropped at a random place, or looped from one where the utterance is longer. A crop that falls into a pause of
    the clip moves to the clip's loudest sample.

    perturbations: `TRAINING_PERTURBATIONS`, one row of `EVALUATION_PERTURBATIONS` in a tuple, or rows of your own.
    noise_clips: 1-d waveforms at the utterances' sampling rate (tensors or arrays), for the one row of kind `real`; or
    a mapping of names to such clips: each row of kind `real` draws from the pool of its own name (several rows may
    share a name, as one class of noise at several SNRs does), and a pool without a row is left alone.

    Raises ValueError for no perturbation, for rows of real noise without clips, for two such rows and one list of
    clips (they would share it: give a mapping, or make a Perturber for each), and for clips that are empty, silent,
    not 1-d or not finite.
    """

    def __init__(
        self,
        perturbations: Iterable[Perturbation],
        noise_clips: Iterable[Tensor] | Mapping[str, Iterable[Tensor]] | None = None,
    ):
        self.perturbations = tuple(perturbations)
        if not self.perturbations:
            raise ValueError("Perturber needs at least one perturbation.")
        real = [perturbation.name for perturbation in self.perturbations if perturbation.kind == "real"]
        if isinstance(noise_clips, Mapping):
            self.noise_pools = {
                name: _check_noise_pool(noise_clips.get(name, ()), f" of {name!r}") for name in dict.fromkeys(real)
            }
        else:
            clips = _check_noise_pool(noise_clips or ())
            if clips and len(real) > 1:
                raise ValueError(
                    f"Perturbations {', '.join(real)} would share one pool of noise clips: give a mapping of their "
                    "names to clips, or make a Perturber for each."
                )
            self.noise_pools = dict.fromkeys(real, clips)
        without_clips = [name for name, clips in self.noise_pools.items() if not clips]
        if without_clips:
            raise ValueError(
                f"Perturbations {', '.join(without_clips)} need noise_clips, got none. Give clips or leave them out."
            )

    def __call__(
        self, waveforms: Tensor, num_samples: Tensor | Sequence[int], seeds: Sequence[int]
    ) -> PerturbedWaveforms:
        """
        waveforms: `(batch, samples)`, floating point, on any device; num_samples: `(batch,)`, valid samples of each;
        seeds: one per utterance, see `utterance_seed`.

        The result of an utterance depends on its samples, num_samples and seed only. Samples past num_samples are 0.
        A silent utterance comes back silent. Raises ValueError for other shapes or types, lengths outside 1..samples,
        seeds outside 0 .. 2 ** 32 - 1 and utterances with NaN or infinite samples.
        """
        lengths = _check_batch(waveforms, num_samples, seeds)
        draws = [self._draw(length, seed) for length, seed in zip(lengths, seeds, strict=True)]
        sources = _move([draw.source for draw in draws], waveforms.device)
        perturbed = torch.zeros_like(waveforms)
        for row, (length, draw, source) in enumerate(zip(lengths, draws, sources, strict=True)):
            perturbed[row, :length] = draw.apply(waveforms[row, :length], source)
        return PerturbedWaveforms(
            perturbed, [draw.perturbation.name for draw in draws], [draw.level for draw in draws]
        )

    def perturb(self, waveform: Tensor, seed: int) -> tuple[Tensor, str, float]:
        """
        One utterance `(samples,)` without padding: its perturbed samples, and the name and level (dB or bits) drawn.

        Raises ValueError as `__call__` does.
        """
        if waveform.dim() != 1:
            raise ValueError(f"waveform must be (samples,), got {tuple(waveform.shape)}.")
        perturbed = self(waveform.unsqueeze(0), [len(waveform)], [seed])
        return perturbed.waveforms[0], perturbed.names[0], perturbed.levels[0]

    def _draw(self, num_samples: int, seed: int) -> "_Draw":
        """All that is random about an utterance of num_samples samples, on the CPU."""
        generator = Generator().manual_seed(seed)
        perturbation = self.perturbations[int(torch.randint(len(self.perturbations), (), generator=generator))]
        level = perturbation.draw_level(generator)
        if perturbation.kind == "bit_crush":
            source = torch.empty(0)
        elif perturbation.kind == "real":
            clips = self.noise_pools[perturbation.name]
            clip = clips[int(torch.randint(len(clips), (), generator=generator))]
            source = _fit_noise(clip, num_samples, generator)
        else:
            source = _white_noise(num_samples, NOISE_EXPONENTS[perturbation.kind], generator)
        return _Draw(perturbation, level, source)


@dataclass(frozen=True)
class _Draw:
    """What an utterance's seed drew; source: white noise or a crop of real noise `(samples,)`, empty for a crush."""

    perturbation: Perturbation
    level: float
    source: Tensor

    def apply(self, waveform: Tensor, source: Tensor) -> Tensor:
        """The perturbed waveform `(samples,)`; source: this draw's, on the waveform's device. Waits for no GPU."""
        kind = self.perturbation.kind
        if kind == "bit_crush":
            return bit_crush(waveform, self.level)
        noise = source if kind == "real" else _colour(source, len(waveform), NOISE_EXPONENTS[kind], SAMPLING_RATE)
        return _mix(waveform, noise.to(waveform.dtype), self.level)


def _move(sources: list[Tensor], device: torch.device) -> list[Tensor]:
    """The sources on a device, in one transfer."""
    if device.type == "cpu":
        return sources
    pieces = torch.cat(sources).to(device).split([len(source) for source in sources])
    return [piece.clone() for piece in pieces]  # each at an aligned address, whatever its neighbours' lengths


def _white_noise(num_samples: int, exponent: float, generator: Generator) -> Tensor:
    """What `_colour` makes num_samples of: as many samples, or the next number that an FFT handles fast."""
    length = num_samples if exponent == 0.0 else _fast_fft_length(max(num_samples, 2))
    return torch.randn(length, generator=generator)


def _colour(white: Tensor, num_samples: int, exponent: float, sampling_rate: int) -> Tensor:
    """`coloured_noise` `(num_samples,)` from `_white_noise`, on its device."""
    noise = white
    if exponent != 0.0:
        spectrum = torch.fft.rfft(white)
        frequencies = torch.arange(len(spectrum), device=white.device) * (sampling_rate / len(white))
        gains = frequencies.clamp(min=LOWEST_FREQUENCY) ** (-exponent / 2)
        gains[0] = 0.0
        noise = torch.fft.irfft(spectrum * gains, n=len(white))[:num_samples]
    return (noise / _mean_power(noise).sqrt()).float()


def _mix(waveform: Tensor, noise: Tensor, snr_db: float | Tensor) -> Tensor:
    """`mix_at_snr` of noise known not to be silent."""
    scale = (_mean_power(waveform) / _mean_power(noise)).sqrt() * 10 ** (-snr_db / 20)
    return waveform + scale.to(waveform.dtype).unsqueeze(-1) * noise


def _mean_power(waveform: Tensor) -> Tensor:
    """Mean square over the last dimension, summed in float64: float32 loses digits over minutes of audio."""
    return waveform.double().square().mean(dim=-1)


def _fast_fft_length(minimum: int) -> int:
    """The smallest number >= minimum whose only prime factors are 2, 3 and 5."""
    best = 1 << (minimum - 1).bit_length()
    power_of_five = 1
    while power_of_five < best:
        odd = power_of_five
        while odd < best:
            best = min(best, odd << (-(-minimum // odd) - 1).bit_length())
            odd *= 3
        power_of_five *= 5
    return best


def _fit_noise(clip: Tensor, num_samples: int, generator: Generator) -> Tensor:
    """num_samples of a noise clip: cropped at a random place, or looped from one where the clip is shorter."""
    if len(clip) < num_samples:
        start = int(torch.randint(len(clip), (), generator=generator))
        return clip.roll(-start).repeat(-(-num_samples // len(clip)))[:num_samples]
    start = int(torch.randint(len(clip) - num_samples + 1, (), generator=generator))
    crop = clip[start : start + num_samples]
    if _mean_power(crop) < PAUSE_SHARE * _mean_power(clip):
        loudest = int(clip.abs().argmax())
        start = min(max(loudest - num_samples // 2, 0), len(clip) - num_samples)
        crop = clip[start : start + num_samples]
    return crop


def _check_noise_pool(clips: Iterable[Tensor | Sequence[float]], pool: str = "") -> list[Tensor]:
    return [_check_noise_clip(clip, f"{index}{pool}") for index, clip in enumerate(clips)]


def _check_noise_clip(clip: Tensor | Sequence[float], name: str) -> Tensor:
    clip = torch.as_tensor(clip).detach().to("cpu", torch.float32)
    if clip.dim() != 1 or len(clip) == 0:
        raise ValueError(f"Noise clip {name} must be a non-empty 1-d waveform, got shape {tuple(clip.shape)}.")
    if not bool(torch.isfinite(clip).all()):
        raise ValueError(f"Noise clip {name} has NaN or infinite samples.")
    if not bool(_mean_power(clip) > 0):
        raise ValueError(f"Noise clip {name} is silent: leave it out.")
    return clip


def _check_batch(waveforms: Tensor, num_samples: Tensor | Sequence[int], seeds: Sequence[int]) -> list[int]:
    """The utterances' lengths as a list of ints; ValueError where `Perturber.__call__` says so."""
    if waveforms.dim() != 2 or not waveforms.is_floating_point():
        raise ValueError(
            f"waveforms must be floating point (batch, samples), got {waveforms.dtype} {tuple(waveforms.shape)}."
        )
    lengths = num_samples.tolist() if isinstance(num_samples, Tensor) else [int(length) for length in num_samples]
    batch, samples = waveforms.shape
    if len(lengths) != batch or len(seeds) != batch:
        raise ValueError(f"{batch} waveforms need as many num_samples and seeds, got {len(lengths)} and {len(seeds)}.")
    for row, length in enumerate(lengths):
        if not 1 <= length <= samples:
            raise ValueError(f"num_samples[{row}] must lie in 1..{samples}, got {length}.")
    for row, seed in enumerate(seeds):
        if not 0 <= seed < 2**32:  # the CPU generator reads 32 bits and would silently drop the rest
            raise ValueError(
                f"Utterance {row} of the batch: seed must lie in 0 .. 2 ** 32 - 1, got {seed}: take it from "
                "utterance_seed."
            )
    padding = torch.arange(samples, device=waveforms.device) >= torch.tensor(lengths, device=waveforms.device)[:, None]
    finite = (waveforms.isfinite() | padding).all(dim=1).tolist()
    if not all(finite):
        raise ValueError(f"Utterance {finite.index(False)} of the batch has NaN or infinite samples.")
    return lengths
