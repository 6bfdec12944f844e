"""
Synthetic stand-ins for recorded noise, so that the suite's quickstart and tests have some without a download.

They are made, not recorded: babble mixed from the embedded corpus's training speakers, and sounds of simple formulas
that carry the names of the ESC-50 classes they imitate. Four of them are ESC-10 classes, the suite's held-out noise.
Figures measured with them are not comparable with figures on ESC-50.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.random import Generator

from .audio_reading import SAMPLING_RATE
from .digit_strings import encode_wav

SECONDS = 5
CLIPS_PER_CLASS = 6
SPLIT_SEEDS = {"train": 10, "validation": 11, "test": 12}
VOICES_PER_BABBLE = 6


def make_noise_clips(split: str, speech: list[np.ndarray]) -> Iterator[dict]:
    """
    Clips of all classes, the same at each call; no clip is in two splits.

    speech: utterances `(samples,)` at 16 kHz that babble is mixed from.
    Yields rows `audio` (a 16-bit wav file as bytes, peak 0.5) and `noise` (class).
    """
    makers = {"babble": lambda random: babble(speech, random)} | FORMULAS
    for number, (noise, make) in enumerate(makers.items()):
        for clip in range(CLIPS_PER_CLASS):
            waveform = make(np.random.default_rng((SPLIT_SEEDS[split], number, clip)))
            file = encode_wav(0.5 * waveform / np.abs(waveform).max())
            yield {"audio": {"bytes": file, "path": f"{noise}_{split}_{clip}.wav"}, "noise": noise}


def babble(speech: list[np.ndarray], random: Generator) -> np.ndarray:
    """Several voices at once, each a row of random utterances at equal loudness."""
    length = SECONDS * SAMPLING_RATE
    mix = np.zeros(length)
    for _ in range(VOICES_PER_BABBLE):
        voice = np.zeros(0)
        while len(voice) < length:
            utterance = speech[random.integers(len(speech))]
            voice = np.concatenate([voice, utterance / np.sqrt(np.mean(utterance**2))])
        start = random.integers(len(voice) - length + 1)
        mix += voice[start : start + length]
    return mix


def engine(random: Generator) -> np.ndarray:
    """A buzz of 30 falling harmonics whose pitch wanders, in low-passed noise."""
    pitch = random.uniform(40, 90) * (1 + 0.1 * _slow_wave(random, 0.5))
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLING_RATE
    buzz = sum(np.sin(k * phase + random.uniform(0, 2 * np.pi)) / k for k in range(1, 31))
    return buzz + 0.5 * _filtered_noise(random, 20, 800)


def siren(random: Generator) -> np.ndarray:
    """A tone with two harmonics that wails between about 600 and 1400 Hz."""
    pitch = random.uniform(850, 1100) * (1 + 0.35 * np.sin(2 * np.pi * random.uniform(0.2, 2.0) * _seconds()))
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLING_RATE
    return np.sin(phase) + 0.3 * np.sin(2 * phase) + 0.1 * np.sin(3 * phase)


def wind(random: Generator) -> np.ndarray:
    """Low noise in gusts."""
    return _filtered_noise(random, 30, random.uniform(300, 700)) * (1.2 + _slow_wave(random, 0.7))


def clock_tick(random: Generator) -> np.ndarray:
    """Short resonant clicks at an even pace."""
    return _impulse_train(random, np.arange(0.1, SECONDS, random.uniform(0.25, 0.6)), (1500, 4500), 0.004)


def crackling_fire(random: Generator) -> np.ndarray:
    """Many random clicks of uneven loudness over a soft rumble."""
    crackle = _impulse_train(random, random.uniform(0, SECONDS, 150), (800, 6000), 0.002)
    return crackle + 0.1 * _filtered_noise(random, 30, 300)


def helicopter(random: Generator) -> np.ndarray:
    """Noise chopped by a rotor of 10-16 beats per second."""
    rotor = 0.5 + 0.5 * np.sin(2 * np.pi * random.uniform(10, 16) * _seconds())
    return _filtered_noise(random, 30, 1500) * (0.1 + rotor**4)


def sea_waves(random: Generator) -> np.ndarray:
    """Broad noise that swells and falls over seconds."""
    swell = 0.5 + 0.5 * np.sin(2 * np.pi * random.uniform(0.15, 0.3) * _seconds() + random.uniform(0, 2 * np.pi))
    return _filtered_noise(random, 100, 5000) * (0.15 + swell**2)


FORMULAS: dict[str, Callable[[Generator], np.ndarray]] = {
    function.__name__: function
    for function in (engine, siren, wind, clock_tick, crackling_fire, helicopter, sea_waves)
}


def _seconds() -> np.ndarray:
    return np.arange(SECONDS * SAMPLING_RATE) / SAMPLING_RATE


def _filtered_noise(random: Generator, lowest: float, highest: float) -> np.ndarray:
    """White noise between two frequencies in Hz, falling by 6 dB per octave above the upper one; unit RMS."""
    spectrum = np.fft.rfft(random.standard_normal(SECONDS * SAMPLING_RATE))
    frequencies = np.fft.rfftfreq(SECONDS * SAMPLING_RATE, 1 / SAMPLING_RATE)
    spectrum *= (frequencies >= lowest) / (1 + frequencies / highest)
    noise = np.fft.irfft(spectrum)
    return noise / np.sqrt(np.mean(noise**2))


def _slow_wave(random: Generator, frequency: float) -> np.ndarray:
    """A smooth random curve between -1 and 1 that turns about `frequency` times a second."""
    knots = random.uniform(-1, 1, int(2 * frequency * SECONDS) + 3)
    return np.interp(_seconds(), np.linspace(0, SECONDS, len(knots)), knots)


def _impulse_train(random: Generator, times: np.ndarray, pitches: tuple[float, float], decay: float) -> np.ndarray:
    """Ringing clicks at `times` (s) with pitches in Hz and a decay in s."""
    waveform, ring = np.zeros((SECONDS + 1) * SAMPLING_RATE), _seconds()[: SAMPLING_RATE // 10]
    for time in times:
        click = np.sin(2 * np.pi * random.uniform(*pitches) * ring) * np.exp(-ring / decay)
        start = int(time * SAMPLING_RATE)
        waveform[start : start + len(ring)] += random.uniform(0.2, 1.0) * click
    return waveform[: SECONDS * SAMPLING_RATE]
