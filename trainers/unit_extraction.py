"""A corpus as states or speech units, computed once by any number of processes and kept in a folder."""

import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, SequenceFeatureExtractor

from ..modeling.pretrained_encoders import weights_checksum
from ..processing.audio_reading import SAMPLING_RATE
from ..processing.perturbation import change_speed
from .results import write_atomically

ROWS_PER_SHARD = 200  # what a killed process loses, and what waits in memory for similar lengths
KEPT_TYPE = np.float16  # half the file: three digits are more than centroids need
LABELS = ("text", "speaker", "emotion", "noise")
STATE_COLUMNS = Features(name=Value("string"), states=Value("binary"))
UNIT_COLUMNS = dict(units=List(Value("int32")), num_samples=Value("int64"), speed=Value("float32"))


class ClusteredEncoder(Protocol):
    """What gives states to be clustered: a `KMeansTokenizerModel`, or whatever has the same."""

    config: Any  # `layer` and `encoder_config`
    encoder: PreTrainedModel
    device: torch.device

    def features(self, **inputs: Tensor) -> tuple[Tensor, Tensor]:
        """States `(batch, frames, dim)` and their mask `(batch, frames)`."""


def extract_features(
    corpus: Dataset,
    model: ClusteredEncoder,
    feature_extractor: SequenceFeatureExtractor,
    folder: str | Path,
    description: dict[str, Any],
    batch_size: int = 16,
) -> "KeptFeatures":
    """
    The states of every utterance that a `KMeansTokenizerModel` clusters, float16, in `folder`; see `fill_folder`.

    Args:
        corpus: rows `audio`, `text`, `speaker`; description: what it was loaded from. Must be JSON.

    Raises:
        ValueError: the folder holds something else; an utterance (it is named) whose states are NaN, infinite or
            beyond float16, or which is longer than the encoder's window.
    """

    def encode(rows: list[int]) -> Iterator[dict[str, Any]]:
        utterances = [corpus[row] for row in rows]
        waveforms = [to_waveform(row) for row in utterances]
        names = [utterance_name(*each) for each in zip(rows, utterances)]
        states = in_batches(waveforms, batch_size, lambda batch: encode_states(model, feature_extractor, batch))
        for name, each in zip(names, states, strict=True):
            check_states(name, each)
            yield {"name": name, "states": each.tobytes()}

    identity = {"layer": model.config.layer, "encoder": weights_checksum(model.encoder), "rows": len(corpus)}
    kept = fill_folder(folder, description | identity, len(corpus), encode, STATE_COLUMNS, "encoder states")
    return KeptFeatures(kept, model.config.encoder_config.hidden_size)


class KeptFeatures:
    """Iterates over `(name, states (frames, dim) float32)` of all utterances in `extract_features`'s folder."""

    def __init__(self, kept: Dataset, dim: int):
        self.kept = kept
        self.dim = dim

    def __len__(self) -> int:
        return len(self.kept)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        for row in self.kept:
            yield row["name"], np.frombuffer(row["states"], KEPT_TYPE).reshape(-1, self.dim).astype(np.float32)


def extract_units(
    corpus: Dataset,
    processor: Any,
    folder: str | Path,
    description: dict[str, Any],
    speeds: Iterable[float] = (1.0,),
    batch_size: int = 16,
) -> Dataset:
    """
    The units of every utterance at every speed, in `folder`; see `fill_folder`.

    Args:
        corpus: rows `audio` and what is known of `text`, `speaker`, `emotion`, `noise`.
        processor: `SpeechLMProcessor`; with pieces it gives pieces, else the audio tokenizer's codes.
        description: what the corpus was loaded from. Must be JSON.
        speeds: "speed perturbation [...] using factor 0.9 and 1.1" of the SLD paper: tempo and pitch.

    Returns rows `units` (ids), what is known of the utterance, `num_samples` (at 16 kHz, at that speed) and `speed`:
    all utterances at the first speed, then all at the next.

    Raises:
        ValueError: the folder holds something else.
    """
    speeds = [float(speed) for speed in speeds]
    labels = [name for name in LABELS if name in corpus.column_names]

    def encode(rows: list[int]) -> Iterator[dict[str, Any]]:
        numbers = [divmod(row, len(corpus)) for row in rows]
        utterances = [corpus[row] for _, row in numbers]
        factors = [speeds[index] for index, _ in numbers]
        waveforms = [change_speed(to_waveform(row), factor) for row, factor in zip(utterances, factors)]
        units = in_batches(
            waveforms, batch_size, lambda batch: processor.units([each.numpy() for each in batch], SAMPLING_RATE)
        )
        for row, factor, waveform, ids in zip(utterances, factors, waveforms, units, strict=True):
            known = {name: row[name] for name in labels}
            yield {"units": ids, **known, "num_samples": len(waveform), "speed": factor}

    identity = {"speeds": speeds, "units": units_checksum(processor), "rows": len(corpus)}
    columns = Features(**UNIT_COLUMNS, **dict.fromkeys(labels, Value("string")))
    return fill_folder(folder, description | identity, len(corpus) * len(speeds), encode, columns, "speech units")


def fill_folder(
    folder: str | Path,
    description: dict[str, Any],
    num_rows: int,
    encode: Callable[[list[int]], Iterable[dict[str, Any]]],
    columns: Features,
    title: str,
) -> Dataset:
    """
    Rows of a corpus, computed in shards by all processes that call this with one folder, on one machine or several.

    A process takes the next shard that nobody has, so that a slow one holds nobody up, and finishes what a killed one
    has left. A shard is there whole or not at all: whoever starts again computes only what is missing, with as many
    processes as it likes. When all are there they become one file.

    Args:
        folder: on a file system that all processes share and that can lock files.
        description: what the rows were made from; kept beside them, so that nothing else is mistaken for them.
        encode: numbers in 0 .. num_rows - 1 to rows of these `columns`, which depend on nothing but their number.
        title: of the progress bar.

    Returns a memory-mapped dataset.

    Raises:
        ValueError: the folder holds something else.
    """
    folder = Path(folder)
    claim_folder(folder, description)
    file, shards, locks = folder / "rows.arrow", folder / "shards", folder / "locks"
    names = [f"{first:09d}" for first in range(0, num_rows, ROWS_PER_SHARD)]
    for path in (shards, locks):
        path.mkdir(exist_ok=True)
    with tqdm(total=len(names), desc=title, unit="shard", disable=not PartialState().is_local_main_process) as bar:
        for wait in (False, True):  # first what nobody has, then what others had: they may have died
            for name in names:
                try:
                    with FileLock(locks / name).acquire(blocking=wait):
                        if not file.exists() and not (shards / name).exists():
                            first = int(name)
                            rows = encode(list(range(first, min(first + ROWS_PER_SHARD, num_rows))))
                            write_rows(shards / name, rows, columns)
                except Timeout:
                    continue
                bar.update(0 if wait else 1)
        bar.update(len(names) - bar.n)
    with FileLock(folder / "lock"):
        if not file.exists():
            parts = [shards / name for name in names]
            write_rows(file, (row for part in parts for row in Dataset.from_file(str(part))), columns)
        shutil.rmtree(shards, ignore_errors=True)  # another process may be at it, too
    return Dataset.from_file(str(file))


def claim_folder(folder: Path, description: dict[str, Any]):
    """
    Write down what a folder is for, or compare.

    Raises:
        ValueError: it is for something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = json.loads(json.dumps(description))
    known = folder / "description.json"
    with FileLock(folder / "lock"):
        if not known.exists():
            write_atomically(known, json.dumps(wanted, indent=2))
        found = json.loads(known.read_text())
    if found != wanted:
        raise ValueError(f"{folder} is made from {found}, not from {wanted}: remove it, or give another.")


def write_rows(path: Path, rows: Iterable[dict[str, Any]], columns: Features):
    """An Arrow file that is there whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    with ArrowWriter(path=str(unfinished), features=columns, writer_batch_size=100) as writer:
        for row in rows:
            writer.write(row)
        writer.finalize()
    unfinished.rename(path)


def in_batches(waveforms: list[Tensor], batch_size: int, encode: Callable[[list[Tensor]], list]) -> list:
    """What `encode` makes of each waveform, in batches of similar length."""
    order = sorted(range(len(waveforms)), key=lambda row: len(waveforms[row]))
    encoded = {}
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        encoded.update(zip(rows, encode([waveforms[row] for row in rows]), strict=True))
    return [encoded[row] for row in range(len(waveforms))]


def encode_states(
    model: PreTrainedModel, feature_extractor: SequenceFeatureExtractor, waveforms: list[Tensor]
) -> list[np.ndarray]:
    """Per waveform `(samples,)` its states `(frames, dim)`."""
    features = feature_extractor(
        [waveform.numpy() for waveform in waveforms],
        sampling_rate=SAMPLING_RATE,
        padding="longest",
        return_tensors="pt",
    )
    states, mask = model.features(**features.to(model.device))
    return [each[real].float().cpu().numpy().astype(KEPT_TYPE) for each, real in zip(states, mask)]


def check_states(name: str, states: np.ndarray):
    """Raise ValueError, with the utterance's name, for states `(frames, dim)` that cannot be clustered."""
    finite = np.isfinite(states).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"the features of {name} are NaN, infinite or beyond {states.dtype} in {int((~finite).sum())} of "
            f"{len(states)} frames: repair the recording or leave it out."
        )


def to_waveform(row: dict[str, Any]) -> Tensor:
    """A row's samples `(samples,)`; a copy, because memory maps are read-only."""
    return torch.from_numpy(np.array(row["audio"], dtype=np.float32))


def utterance_name(number: int, row: dict[str, Any]) -> str:
    """How errors call an utterance."""
    return f"utterance {number} (speaker {row['speaker'] or 'unknown'}: {row['text'][:60]!r})"


def units_checksum(processor: Any) -> str:
    """Of the audio tokenizer's weights and the pieces."""
    pieces = processor.unit_pieces
    checksum = 0 if pieces is None else zlib.crc32(pieces.processor.serialized_model_proto())
    return f"{weights_checksum(processor.audio_tokenizer)}-{checksum:08x}"
