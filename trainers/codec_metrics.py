"""
How close a codec's waveform is to its input: distances of spectrograms, ratios of energy, perceptual scores.

    mel_distance(made, targets)  # (batch,), of waveforms (batch, samples) at 16 kHz
    MEASURES["stoi"](made[0], targets[0])  # where pystoi is installed

Mel and STFT distance are those of the paper's Tables 1 and 2: the mel distance is the training loss over the windows
that section 3 names, the STFT distance is DAC's with its own defaults. Perceptual measures need packages or programs
that the suite does not install; they say so when asked for.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

import soundfile
import torch
from torch import Tensor, nn

from .codec_losses import (
    FLOOR,
    MEL_BINS,
    MEL_WINDOWS,
    check_waveform_pair,
    magnitude_spectrogram,
    mel_distances,
)

STFT_WINDOWS = (2048, 512)  # samples; DAC's evaluation
SAMPLING_RATE = 16000  # Hz, of all waveforms here
QUIETEST = 1e-8  # energy that a ratio begins at


def mel_distance(waveforms: Tensor, targets: Tensor) -> Tensor:
    """
    `codec_losses.mel_distances` over the paper's seven windows: `(batch,)`, in decades summed over windows.

    waveforms, targets: `(batch, samples)`; shorter than the longest window, they are zero-padded to it. Not DAC's
    default for evaluation (windows 2048 and 512, 150 and 80 bins, magnitudes as well as powers): the paper names its
    windows, and takes over the rest. Raises ValueError for two shapes.
    """
    windows = zero_padded(waveforms, max(MEL_WINDOWS)), zero_padded(targets, max(MEL_WINDOWS))
    return mel_distances(*windows, MEL_WINDOWS, MEL_BINS, SAMPLING_RATE)


def stft_distance(waveforms: Tensor, targets: Tensor) -> Tensor:
    """
    Multi-scale STFT distance with DAC's defaults: `(batch,)`, mean |difference| of magnitudes plus that of log10 of
    squared magnitudes (in decades, not less than 1e-5 before squaring), summed over windows of 2048 and 512 samples.

    waveforms, targets as `mel_distance`.
    """
    waveforms, targets = zero_padded(waveforms, max(STFT_WINDOWS)), zero_padded(targets, max(STFT_WINDOWS))
    check_waveform_pair(waveforms, targets, max(STFT_WINDOWS))
    distances = torch.zeros(len(waveforms), device=waveforms.device)
    for window in STFT_WINDOWS:
        ours, theirs = (magnitude_spectrogram(each, window) for each in (waveforms, targets))
        logs = [2 * each.clamp(min=FLOOR).log10() for each in (ours, theirs)]
        distances += (logs[0] - logs[1]).abs().flatten(1).mean(dim=1)
        distances += (ours - theirs).abs().flatten(1).mean(dim=1)
    return distances


def zero_padded(waveforms: Tensor, samples: int) -> Tensor:
    """`(batch, samples or more)`."""
    return nn.functional.pad(waveforms, (0, max(0, samples - waveforms.shape[-1])))


def si_sdr(waveforms: Tensor, targets: Tensor) -> Tensor:
    """
    Scale-invariant ratio of signal to distortion: `(batch,)`, in dB, of waveforms `(batch, samples)` without their
    means. 80 dB where both are equal but for scale, -80 dB where one of them is silent. Raises ValueError for two
    shapes.
    """
    check_waveform_pair(waveforms, targets, 1)
    waveforms, targets = (each.double() - each.double().mean(dim=1, keepdim=True) for each in (waveforms, targets))
    energy = targets.square().sum(dim=1, keepdim=True)
    scale = (waveforms * targets).sum(dim=1, keepdim=True) / energy.clamp(min=QUIETEST)
    signal = (scale * targets).square().sum(dim=1)
    distortion = (waveforms - scale * targets).square().sum(dim=1)
    share = signal / (signal + distortion).clamp(min=QUIETEST)
    return (10 * ((share + QUIETEST) / (1 - share + QUIETEST)).log10()).float()


def import_extra(package: str, reason: str, install: str) -> ModuleType:
    """A package that the suite does not ask for. Raises ImportError, with what to do, where it is not installed."""
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(f"{reason} needs the package {package}, which is not installed: {install}.") from error


def stoi(waveform: Tensor, target: Tensor) -> float:
    """Short-time objective intelligibility of `(samples,)`, 0 to 1. Raises ImportError without pystoi."""
    package = import_extra("pystoi", "STOI", "pip install pystoi")
    return float(package.stoi(*_arrays(target, waveform), SAMPLING_RATE))


def pesq(waveform: Tensor, target: Tensor) -> float:
    """Wide-band PESQ of `(samples,)`, MOS-LQO 1.04 to 4.64. Raises ImportError without pesq."""
    package = import_extra("pesq", "PESQ", "pip install pesq, which needs a C compiler")
    return float(package.pesq(SAMPLING_RATE, *_arrays(target, waveform), "wb"))


def visqol(waveform: Tensor, target: Tensor) -> float:
    """
    ViSQOL's MOS-LQO in speech mode of `(samples,)`, 1 to 5, from Google's program `visqol`.

    Raises:
        FileNotFoundError: the program is not on the PATH; there is no package of it for Python.
        RuntimeError: it failed, or printed no score.
    """
    program = shutil.which("visqol")
    if program is None:
        raise FileNotFoundError(
            "ViSQOL needs the program visqol on the PATH, which no package index has: build it from "
            "github.com/google/visqol."
        )
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{name}.wav") for name in ("reference", "degraded")]
        for file, samples in zip(files, _arrays(target, waveform)):
            soundfile.write(file, samples, SAMPLING_RATE)
        command = [program, "--reference_file", files[0], "--degraded_file", files[1], "--use_speech_mode"]
        done = subprocess.run(command, capture_output=True, text=True)
    score = re.search(r"MOS-LQO:\s*([\d.]+)", done.stdout)
    if done.returncode or score is None:
        raise RuntimeError(f"visqol ended with {done.returncode} and no score: {(done.stderr or done.stdout)[-500:]}")
    return float(score[1])


def _arrays(*waveforms: Tensor) -> list:
    return [each.detach().cpu().float().numpy() for each in waveforms]


MEASURES: dict[str, Callable[[Tensor, Tensor], float]] = {
    "mel_distance": lambda waveform, target: float(mel_distance(waveform[None], target[None])),
    "stft_distance": lambda waveform, target: float(stft_distance(waveform[None], target[None])),
    "si_sdr": lambda waveform, target: float(si_sdr(waveform[None], target[None])),
    "stoi": stoi,
    "pesq": pesq,
    "visqol": visqol,
}
ALWAYS_HERE = ("mel_distance", "stft_distance", "si_sdr")
UNITS = {"mel_distance": "decades", "stft_distance": "", "si_sdr": "dB", "stoi": "", "pesq": "MOS", "visqol": "MOS"}


def take_measures(waveform: Tensor, target: Tensor, names: Sequence[str] = ALWAYS_HERE) -> dict[str, float]:
    """
    The named `MEASURES` of one utterance, made and target `(samples,)`.

    Raises:
        ValueError: an unknown name.
    """
    unknown = [name for name in names if name not in MEASURES]
    if unknown:
        raise ValueError(f"Measures are {', '.join(MEASURES)}; got unknown {', '.join(unknown)}.")
    return {name: MEASURES[name](waveform, target) for name in names}
