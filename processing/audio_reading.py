"""Decoding of audio files to the one waveform format of the suite: float32, mono, 16 kHz."""

import io
import logging
from collections.abc import Iterable, Iterator

import fsspec
import numpy as np
import soundfile
import soxr

logger = logging.getLogger(__name__)

SAMPLING_RATE = 16000  # Hz
AUDIO_COLUMNS = ("audio", "clean_audio")
UNKNOWN_LENGTH = 2**62  # libsndfile gives about 2**63 frames when a header does not tell


class UnreadableAudioError(ValueError):
    """
    A missing, undecodable or empty audio file, one with NaN or infinite samples, or halves of a pair that differ in
    length; the message names them.
    """


class UnequalHalvesError(UnreadableAudioError):
    """The noisy and the clean half of a pair differ in length."""


def resample(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Bring `(samples,)` float32 from `sampling_rate` (Hz) to 16 kHz with soxr."""
    if sampling_rate == SAMPLING_RATE:
        return waveform
    return soxr.resample(waveform, sampling_rate, SAMPLING_RATE)


def read_audio(audio: dict | None, corpus: str) -> np.ndarray:
    """
    Decode one cell of an `Audio(decode=False)` column: channels averaged, resampled to 16 kHz.

    audio: `{"bytes": encoded file or None, "path": file name, local path or URL}`, or None for a row without audio,
    which is an error; corpus: named in errors.
    Returns `(samples,)` float32 in [-1, 1]. Raises `UnreadableAudioError`.
    """
    _check_cell(audio, corpus)
    name = _describe(audio, corpus)
    try:
        samples, sampling_rate = _decode(audio)
    except (OSError, soundfile.SoundFileError) as error:
        raise UnreadableAudioError(f"cannot read {name}: {error}") from error
    if samples.size == 0:
        raise UnreadableAudioError(f"{name} holds no samples")
    if not np.isfinite(samples).all():
        raise UnreadableAudioError(f"{name} holds NaN or infinite samples")
    return resample(samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0], sampling_rate)


def count_samples(audio: dict | None, corpus: str) -> int:
    """
    Length of what `read_audio` would return, to a sample, from the header of the file; arguments as there.

    A file whose header does not tell is decoded. Raises `UnreadableAudioError`.
    """
    _check_cell(audio, corpus)
    try:
        info = soundfile.info(_open(audio))
    except (OSError, soundfile.SoundFileError) as error:
        raise UnreadableAudioError(f"cannot read {_describe(audio, corpus)}: {error}") from error
    if not 0 < info.frames < UNKNOWN_LENGTH:
        return len(read_audio(audio, corpus))
    return round(info.frames * SAMPLING_RATE / info.samplerate)


def count_row_samples(rows: Iterable[dict], corpus: str) -> list[int]:
    """
    `count_samples` of the `audio` of encoded rows; both halves of pairs are counted.

    Where headers differ, both are decoded to be sure. Raises `UnreadableAudioError`, for pairs of unequal lengths with
    how many there are and the first of them.
    """
    lengths, unequal = [], []
    for row in rows:
        counts = [count_samples(row[name], corpus) for name in AUDIO_COLUMNS if name in row]
        lengths.append(counts[0])
        if len(set(counts)) > 1:
            try:
                read_row(row, corpus)
            except UnequalHalvesError as error:
                unequal.append(str(error))
    if unequal:
        raise UnequalHalvesError(f"{len(unequal)} of {len(lengths)} pairs must be mended or left out: {unequal[:5]}")
    return lengths


def read_row(row: dict, corpus: str) -> dict:
    """A row with its audio columns read by `read_audio`. Raises `UnreadableAudioError`, for unequal halves, too."""
    audio = {name: read_audio(row[name], corpus) for name in AUDIO_COLUMNS if name in row}
    if len({len(waveform) for waveform in audio.values()}) > 1:
        halves = [f"{row[name]['path'] or '(unnamed)'} has {len(waveform)}" for name, waveform in audio.items()]
        raise UnequalHalvesError(f"the halves of a pair of corpus {corpus} differ in samples: {' and '.join(halves)}")
    return row | audio


def _check_cell(audio: dict | None, corpus: str) -> None:
    if audio is None or (audio["bytes"] is None and not audio["path"]):
        raise UnreadableAudioError(f"corpus {corpus} has a row without audio: neither a file nor its name")


def _describe(audio: dict, corpus: str) -> str:
    return f"audio file {audio['path'] or '(unnamed)'} of corpus {corpus}"


def _decode(audio: dict) -> tuple[np.ndarray, int]:
    """`(samples, channels)` float32 and the sampling rate (Hz)."""
    return soundfile.read(_open(audio), dtype="float32", always_2d=True)


def _open(audio: dict) -> io.BytesIO | str:
    if audio["bytes"] is not None:
        return io.BytesIO(audio["bytes"])
    if "://" in audio["path"]:  # a streamed repository of separate files
        with fsspec.open(audio["path"], "rb") as remote:
            return io.BytesIO(remote.read())
    return audio["path"]


class DropCounter:
    """Logs how many rows of a stream, which may have no end, were dropped: at the first and at every power of ten."""

    def __init__(self, corpus: str, reason: str):
        self.corpus = corpus
        self.reason = reason
        self.num_rows = 0
        self.num_dropped = 0

    def count(self, num_rows: int, num_kept: int):
        """Add `num_rows` that were read, of which `num_kept` stay."""
        before = self.num_dropped
        self.num_rows += num_rows
        self.num_dropped += num_rows - num_kept
        is_first = before == 0 and self.num_dropped > 0
        if is_first or len(str(self.num_dropped)) > len(str(before)):
            dropped = (self.corpus, self.num_dropped, self.num_rows, self.reason)
            logger.warning("%s: dropped %d of the first %d rows: %s", *dropped)


class AudioDecoder:
    """Decodes the audio columns of rows; unreadable files raise `UnreadableAudioError`, or are skipped and counted."""

    def __init__(self, corpus: str, skip: bool):
        self.corpus = corpus
        self.skip = skip
        self.num_skipped = 0
        self.streamed = DropCounter(corpus, "unreadable audio")

    def decode_rows(self, rows: Iterable[dict]) -> Iterator[dict]:
        for row in rows:
            try:
                decoded = read_row(row, self.corpus)
            except UnreadableAudioError as error:
                if not self.skip:
                    raise
                self.num_skipped += 1
                logger.warning("skipped unreadable file number %d: %s", self.num_skipped, error)
            else:
                yield decoded

    def decode_batch(self, batch: dict[str, list]) -> dict[str, list]:
        """The same for columns, as `Dataset.with_transform` and `IterableDataset.map` want it."""
        rows = list(self.decode_rows(dict(zip(batch, values)) for values in zip(*batch.values())))
        return {name: [row[name] for row in rows] for name in batch}

    def decode_streamed_batch(self, batch: dict[str, list]) -> dict[str, list]:
        """`decode_batch` that says now and then how many files of how many were skipped."""
        decoded = self.decode_batch(batch)
        self.streamed.count(len(batch["audio"]), len(decoded["audio"]))
        return decoded
