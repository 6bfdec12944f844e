"""Corpora of a few tones in temporary folders, for the tests that load corpora."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset

SHARED_DATA = Path(__file__).parent.parent.parent / "shared" / "data"
needs_shared_data = pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs ../shared/data")


def use_own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left in the user's cache of data sets; the end of a stream does not wait five seconds."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)


def make_tone(seconds: float, frequency: float = 440.0, sampling_rate: int = 16000) -> np.ndarray:
    """`(samples,)` float32."""
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * sampling_rate)) / sampling_rate)).astype(
        "f4"
    )


def encode(waveform: np.ndarray, sampling_rate: int = 16000, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, waveform, sampling_rate, **{"format": "WAV", **options})
    return file.getvalue()


def write_folder(folder: Path, files: dict[str, bytes], header: str, *rows: str) -> Path:
    """Write one `audiofolder` split."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "metadata.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder.parent


def write_parquet(path: Path, rows: list[dict], *audio_columns: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = Dataset.from_list(rows)
    for column in audio_columns or ("audio",):
        table = table.cast_column(column, Audio(decode=False))
    table.to_parquet(path)


def column(corpus: Dataset, name: str) -> list[str]:
    """One column, without decoding the audio."""
    return list(corpus.select_columns(name)[name])


def write_utterances(folder: Path) -> Path:
    """Three utterances for training; the second has no text."""
    files = {f"{name}.wav": encode(make_tone(seconds)) for name, seconds in (("a", 0.1), ("b", 0.2), ("c", 0.3))}
    rows = ('a.wav,"one, two",12,s1', "b.wav,,34,s1", "c.wav,three,56,s2")
    return write_folder(folder / "train", files, "file_name,text,number,speaker", *rows)


def write_digits(folder: Path) -> Path:
    """Isolated "digits" of two speakers at 8 kHz; a recording is known by the frequency of its tone."""
    for split, recordings in (("train", range(10)), ("test", range(10, 12))):
        rows = [
            {
                "audio": {"bytes": encode(make_tone(0.1, 300 + 50 * recording, 8000), 8000), "path": "digit.wav"},
                "text": text,
                "speaker": speaker,
            }
            for speaker in ("s1", "s2")
            for text in ("one", "two", "three")
            for recording in recordings
        ]
        write_parquet(folder / f"{split}.parquet", rows)
    return folder


def write_librispeech(folder: Path) -> Path:
    """A local copy of a Hub repository with a configuration of several splits per part."""
    copy = folder / "openslr" / "librispeech_asr"
    splits = ("train.clean.100", "train.other.500", "validation.clean", "test.clean", "test.other")
    files = "".join(f"\n  - split: {split}\n    path: all/{split}/*.parquet" for split in splits)
    copy.mkdir(parents=True)
    (copy / "README.md").write_text(f"---\nconfigs:\n- config_name: all\n  data_files:{files}\n---\n# LibriSpeech\n")
    for number, split in enumerate(splits):
        audio = {"bytes": encode(make_tone(0.1), format="FLAC"), "path": f"{number}.flac"}
        row = {"file": "x", "audio": audio, "text": f"TEXT {number}", "speaker_id": 100 + number, "chapter_id": 1}
        write_parquet(copy / "all" / split / "0000.parquet", [row])
    return copy
