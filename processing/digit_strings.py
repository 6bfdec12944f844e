"""Seeded digit strings composed from isolated spoken digits: quick, real, closed-vocabulary recognition material."""

import io
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import soundfile
from datasets import Dataset

from .audio_reading import SAMPLING_RATE

DIGITS_PER_STRING = (2, 8)
GAP_SECONDS = (0.025, 0.150)
NUM_STRINGS = {"train": 2000, "validation": 200, "test": 200}
SPLIT_SEEDS = {"train": 0, "validation": 1, "test": 2}


def hold_out_recordings(digits: Dataset, split: str, fraction: float = 0.1) -> Dataset:
    """Divide training digits: "validation" is the last `fraction` of a speaker's rows of a word, "train" the rest."""
    groups = defaultdict(list)
    for row, key in enumerate(zip(digits["speaker"], digits["text"])):
        groups[key].append(row)
    kept = []
    for rows in groups.values():
        boundary = len(rows) - max(1, round(fraction * len(rows)))
        kept.extend(rows[boundary:] if split == "validation" else rows[:boundary])
    return digits.select(sorted(kept))


def compose_digit_strings(digits: list[dict], num_strings: int, seed: int) -> Iterator[dict]:
    """
    Draw strings of 2-8 digits of one speaker with 25-150 ms of silence between them, the same for the same `seed`.

    digits: rows `audio` (`(samples,)` float32 at 16 kHz), `text` (one word), `speaker`.
    Yields rows `audio` (a 16-bit wav file as bytes), `text` (the words), `speaker`.
    """
    random = np.random.default_rng(seed)
    rows_of_speaker = defaultdict(list)
    for digit in digits:
        rows_of_speaker[digit["speaker"]].append(digit)
    speakers = sorted(rows_of_speaker)
    for string in range(num_strings):
        recordings = rows_of_speaker[speakers[random.integers(len(speakers))]]
        length = random.integers(DIGITS_PER_STRING[0], DIGITS_PER_STRING[1] + 1)
        chosen = [recordings[index] for index in random.integers(len(recordings), size=length)]
        gaps = (random.uniform(*GAP_SECONDS, length - 1) * SAMPLING_RATE).astype(int)
        pieces = [chosen[0]["audio"]]
        for digit, gap in zip(chosen[1:], gaps):
            pieces += [np.zeros(gap, dtype=np.float32), digit["audio"]]
        audio = {"bytes": encode_wav(np.concatenate(pieces)), "path": f"digit_string_{seed}_{string}.wav"}
        yield {"audio": audio, "text": " ".join(digit["text"] for digit in chosen), "speaker": chosen[0]["speaker"]}


def encode_wav(waveform: np.ndarray) -> bytes:
    """A 16-bit wav file of `(samples,)` at 16 kHz."""
    file = io.BytesIO()
    soundfile.write(file, waveform, SAMPLING_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()
