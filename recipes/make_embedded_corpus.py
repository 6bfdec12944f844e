"""
Make the embedded corpus: spoken numbers and commands by 21 synthetic voices, processing/embedded/<split>.parquet.

    apt-get install espeak-ng
    python recipes/make_embedded_corpus.py

About a minute on one core. Texts, voices and splits follow from the seed alone; the waveforms also from the release of
espeak-ng (1.51 made the committed files). No speaker is in two splits, and every test word is in the training texts.
"""

import argparse
import io
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from datasets import Audio, Dataset
from tqdm import tqdm

from clearspeech.processing.audio_reading import SAMPLING_RATE, resample

SEED = 0
UTTERANCES_PER_SPEAKER = {"train": 48, "validation": 30, "test": 30}
DURATION_LIMITS = (0.5, 4.0)  # s
OPUS_COMPRESSION_LEVEL = 0.95  # libsndfile's scale from 0 (256 kbit/s) to 1 (6 kbit/s): about 20 kbit/s
EDGE_SECONDS = (0.05, 0.20)  # silence left before and after the speech
EDGE_THRESHOLD = 0.01  # of the peak
LOUDNESS_RANGE = (-15.0, -1.0)  # dBFS, of the peak

UNITS = "zero one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
COMMANDS = (
    "turn {on_off} the {device}",
    "turn the {device} {on_off} please",
    "{open_close} the {opening}",
    "please {open_close} the {room} {opening}",
    "don't {open_close} the {opening}",
    "don't stop the {device}",
    "stop the {device} at {number}",
    "set the timer for {number} minutes",
    "set the volume to {number}",
    "turn the volume {up_down} to {number}",
    "wake me at {hour} o'clock",
    "what's the time please",
    "what's {number} and {number}",
    "call {digits}",
    "don't call {digits}",
    "{digits}",
    "{number} {number}",
    "{number} and {number}",
    "{number} {number} {number}",
    "{number} {number} please",
)
SLOTS = {
    "on_off": ("on", "off"),
    "device": ("light", "music", "timer"),
    "room": ("kitchen", "front"),
    "open_close": ("open", "close"),
    "opening": ("door", "window"),
    "up_down": ("up", "down"),
    "hour": (*UNITS[1:], *TEENS[:3]),
}


@dataclass(frozen=True)
class Voice:
    """One speaker: accent and timbre of espeak-ng, its `pitch` (0-99) and `speed` (words per minute)."""

    accent: str
    variant: str
    pitch: int
    speed: int

    @property
    def speaker(self) -> str:
        return f"{self.accent}_{self.variant}"


VOICES = {
    "train": (
        Voice("en-us", "m1", 40, 160),
        Voice("en-us", "f2", 62, 150),
        Voice("en-us", "Alicia", 55, 165),
        Voice("en-us", "adam", 30, 140),
        Voice("en-us-nyc", "m3", 48, 170),
        Voice("en-us-nyc", "f4", 70, 155),
        Voice("en-gb", "m7", 35, 150),
        Voice("en-gb", "f3", 75, 165),
        Voice("en-gb", "benjamin", 45, 155),
        Voice("en-gb-scotland", "m5", 52, 145),
        Voice("en-gb-scotland", "Andrea", 60, 160),
        Voice("en-gb-x-rp", "edward", 42, 140),
        Voice("en-gb-x-rp", "f1", 58, 170),
        Voice("en-gb-x-gbclan", "m2", 25, 150),
        Voice("en-029", "belinda", 66, 150),
        Voice("en-029", "m6", 38, 165),
    ),
    "validation": (
        Voice("en-us", "steph", 64, 158),
        Voice("en-gb", "m4", 44, 152),
    ),
    "test": (
        Voice("en-us", "f5", 68, 162),
        Voice("en-gb-x-rp", "m8", 36, 148),
        Voice("en-gb", "linda", 57, 156),
    ),
}


def draw_number(random: np.random.Generator) -> str:
    """A number from zero to ninety nine or a round hundred; teens and tens are about equally frequent."""
    kind = random.choice(("unit", "teen", "hundred", "ten", "ten and unit"), p=(0.1, 0.4, 0.1, 0.1, 0.3))
    if kind == "unit":
        return str(random.choice(UNITS))
    if kind == "teen":
        return str(random.choice(TEENS))
    if kind == "hundred":
        return f"{random.choice(UNITS[1:])} hundred"
    tens = str(random.choice(TENS))
    return tens if kind == "ten" else f"{tens} {random.choice(UNITS[1:])}"


def draw_text(random: np.random.Generator) -> str:
    """One utterance of two to eight words."""
    text = str(random.choice(COMMANDS))
    while "{" in text:
        slot = text[text.index("{") + 1 : text.index("}")]
        if slot == "digits":
            value = " ".join(random.choice(UNITS, random.integers(3, 6)))
        elif slot == "number":
            value = draw_number(random)
        else:
            value = str(random.choice(SLOTS[slot]))
        text = text.replace(f"{{{slot}}}", value, 1)
    return text


def synthesize(text: str, voice: Voice, pitch: int, speed: int) -> np.ndarray:
    """Speak `text`: `(samples,)` float32 at 16 kHz, with silence at its edges cut off."""
    command = [
        "espeak-ng",
        "-v",
        f"{voice.accent}+{voice.variant}",
        "-p",
        str(pitch),
        "-s",
        str(speed),
        "--stdout",
        text,
    ]
    spoken = subprocess.run(command, capture_output=True, check=True).stdout
    samples, sampling_rate = soundfile.read(io.BytesIO(spoken), dtype="float32")
    waveform = resample(samples, sampling_rate)
    loud = np.flatnonzero(np.abs(waveform) > EDGE_THRESHOLD * np.abs(waveform).max())
    return waveform[loud[0] : loud[-1] + 1]


def record(text: str, voice: Voice, random: np.random.Generator) -> bytes:
    """One utterance as an Ogg/Opus file; pitch, speed, loudness and the silence around it vary a little."""
    pitch = int(np.clip(voice.pitch + random.integers(-6, 7), 0, 99))
    speed = round(voice.speed * random.uniform(0.85, 1.05))
    waveform = synthesize(text, voice, pitch, speed)
    waveform = waveform * 10 ** (random.uniform(*LOUDNESS_RANGE) / 20) / np.abs(waveform).max()
    waveform = np.pad(waveform, (random.uniform(*EDGE_SECONDS, 2) * SAMPLING_RATE).astype(int))
    duration = len(waveform) / SAMPLING_RATE
    if not DURATION_LIMITS[0] <= duration <= DURATION_LIMITS[1]:
        raise ValueError(
            f"{text!r} by {voice.speaker} lasts {duration:.2f} s, outside {DURATION_LIMITS}; change COMMANDS"
        )
    file = io.BytesIO()
    soundfile.write(
        file, waveform, SAMPLING_RATE, format="OGG", subtype="OPUS", compression_level=OPUS_COMPRESSION_LEVEL
    )
    return file.getvalue()


def main() -> None:
    default = Path(__file__).parent.parent / "processing" / "embedded"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_folder", type=Path, default=default)
    output_folder = parser.parse_args().output_folder
    if shutil.which("espeak-ng") is None:
        raise SystemExit("espeak-ng is not installed; on Debian or Ubuntu: apt-get install espeak-ng")
    output_folder.mkdir(parents=True, exist_ok=True)
    for number, (split, voices) in enumerate(VOICES.items()):
        texts, manner = np.random.default_rng((SEED, number, 0)), np.random.default_rng((SEED, number, 1))
        rows = [(voice, draw_text(texts)) for voice in voices for _ in range(UTTERANCES_PER_SPEAKER[split])]
        utterances = [
            {
                "audio": {"bytes": record(text, voice, manner), "path": f"{split}_{index:04d}.ogg"},
                "text": text,
                "speaker": voice.speaker,
            }
            for index, (voice, text) in enumerate(tqdm(rows, desc=split))
        ]
        corpus = Dataset.from_list(utterances).cast_column("audio", Audio(decode=False))
        corpus.to_parquet(output_folder / f"{split}.parquet")


if __name__ == "__main__":
    main()
