"""
Every way to get a dataset, as one column schema.

Columns: `audio` (float32 mono 16 kHz, `(samples,)`), `text` (as the corpus has it), `speaker` ("" where unknown), and
where known `noise`, `snr_db` (as text), `emotion`, `clean_audio`; pairs with `clean_audio` always have `noise` (""
where unknown). Sources are written `[LAYOUT:]NAME[:CONFIG][@TEXT_COLUMN]`, where NAME is

* `embedded`: the small synthetic corpus that is shipped with the suite; as noise, synthetic stand-ins
* a folder of `<split>/metadata.csv` with audio files beside it, or of `<split>.parquet` (`dev` is validation)
* a Hub id, or a folder with a copy of a Hub repository (README.md and tables); CONFIG is its configuration, except for
  `JacobLinCool/VoiceBank-DEMAND-16k:FOLDER`: the text and log files that this repository lacks (`voicebank_demand.py`)

and with a LAYOUT a folder that is read in its own way:

* `digit_strings:FOLDER[:COUNT]`: COUNT digit strings composed from a folder of isolated digits
* `voicebank_demand:FOLDER[:28spk or :56spk]`: VoiceBank-DEMAND as distributed, by default with both training sets
* `chime4:FOLDER:real` or `:simu`: CHiME-4 as distributed, validation (dt05) and test (et05)
"""

import logging
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import as_file, files
from pathlib import Path

from datasets import Audio, Dataset, Features, IterableDataset, List, Value, concatenate_datasets, interleave_datasets
from datasets.arrow_writer import ArrowWriter

from .audio_reading import AUDIO_COLUMNS, SAMPLING_RATE, AudioDecoder, DropCounter, count_row_samples
from .chime4 import open_chime4
from .digit_strings import NUM_STRINGS, SPLIT_SEEDS, compose_digit_strings, hold_out_recordings
from .embedded_noise import make_noise_clips
from .folder_corpora import SPLIT_NAMES, has_split, open_folder_split, read_parquet
from .hub_corpora import (
    ENCODED_STRUCT,
    ESC50,
    VOICEBANK_DEMAND,
    HubCorpus,
    find_hub_corpus,
    is_hub_copy,
    open_hub_split,
)
from .text_normalization import normalize_text
from .voicebank_demand import open_voicebank_demand, open_voicebank_demand_hub

logger = logging.getLogger(__name__)

ESC10_CLASSES = frozenset(
    "chainsaw clock_tick crackling_fire crying_baby dog helicopter rain rooster sea_waves sneezing".split()
)
ESC50_FOLDS = {"train": (1, 2, 3), "validation": (5,), "test": (4,)}  # the Hub repository has one split and five folds
TEXT_COLUMNS = ("text", "transcription", "transcript", "sentence")  # tried in this order when none is named
SPEAKER_COLUMNS = ("speaker", "speaker_id", "client_id")
LABEL_COLUMNS = ("noise", "snr_db", "emotion")
LAYOUTS = ("digit_strings", "voicebank_demand", "chime4")
ENCODED = Audio(decode=False)


@dataclass(frozen=True)
class Source:
    """A source string, taken apart."""

    name: str
    config: str | None = None
    text: str | None = None
    layout: str | None = None

    @property
    def digit_strings(self) -> bool:
        return self.layout == "digit_strings"


def parse_source(source: str) -> Source:
    """Take `[LAYOUT:]NAME[:CONFIG][@TEXT_COLUMN]` apart."""
    name, _, text = source.partition("@")
    layout = next((layout for layout in LAYOUTS if name.startswith(f"{layout}:")), None)
    name, _, config = (name.removeprefix(f"{layout}:") if layout else name).partition(":")
    if not name:
        raise ValueError(f"source {source!r} names no corpus; write [LAYOUT:]NAME[:CONFIG][@TEXT_COLUMN]")
    return Source(name, config or None, text or None, layout)


def load_corpus(
    source: str, split: str, *, on_error: str = "raise", streaming: bool | None = None, decoded: bool = False
) -> Dataset | IterableDataset:
    """
    Load one corpus; sources and columns are described at the top of this module.

    split: "train", "validation" or "test".
    on_error: "raise" at an unreadable audio file or a pair of unequal halves, or "skip": they are named and counted in
    the log.
    streaming: `None` streams the large Hub corpora only.
    decoded: decode all files now, into a memory-mapped Arrow file of float32 (for small corpora); otherwise a file is
    decoded when its row is read, and `on_error="skip"` reads every file once in advance. To list the texts of the
    latter, write `corpus.select_columns("text")["text"]`: without it, `datasets` decodes whole rows.

    Rows without text, or with none left by `normalize_text` ("<SIL>"), are dropped and counted in the log.

    Raises FileNotFoundError (no such folder or file), ValueError (unknown split, no rows, no text column) and
    `UnreadableAudioError`.
    """
    return load_corpora([source], split, on_error=on_error, streaming=streaming, decoded=decoded)


def load_corpora(
    sources: list[str],
    split: str,
    *,
    on_error: str = "raise",
    streaming: bool | None = None,
    decoded: bool = False,
) -> Dataset | IterableDataset:
    """
    Load several corpora as one, arguments as in `load_corpus`. Columns that not all of them have are left out.

    They follow one another; but streamed for training, they take turns until each was heard whole, so that smaller
    ones come again. Raises ValueError for pairs beside speech without `clean_audio`, else as `load_corpus`.
    """
    _check_arguments(split, on_error, streaming, decoded)
    if isinstance(sources, str) or not sources:
        raise ValueError(f"sources must be a list of at least one corpus, such as ['embedded'], not {sources!r}")
    parts = [_open_transcribed(parse_source(source), split, on_error, streaming) for source in sources]
    pairs = [source for source, part in zip(sources, parts) if "clean_audio" in part.column_names]
    if 0 < len(pairs) < len(sources):
        raise ValueError(f"{pairs} are pairs of noisy and clean speech, the rest of {sources} is not; load them apart")
    return _decode(_join(parts, split, streaming, decoded), ", ".join(sources), on_error, decoded)


def load_noise(
    source: str,
    split: str,
    *,
    exclude_esc10: bool = False,
    only_esc10: bool = False,
    on_error: str = "raise",
    decoded: bool = False,
) -> Dataset:
    """
    Load noise clips with their class: rows `audio`, `noise` ("" where unknown, as in AudioCaps, which has captions).

    The ESC-10 classes are the suite's out-of-domain noise: train with `exclude_esc10`, test also with `only_esc10`.
    A clip of unknown class counts as none of them.
    Raises ValueError when `only_esc10` meets a corpus without classes, or no clip is left; else as `load_corpus`.
    """
    _check_arguments(split, on_error, False, decoded)
    if exclude_esc10 and only_esc10:
        raise ValueError("exclude_esc10 and only_esc10 together leave no clip; set at most one of them")
    clips = _open_clips(parse_source(source), split, on_error)
    if only_esc10 and not any(clips["noise"]):
        raise ValueError(
            f"corpus {source} has no noise classes, so its ESC-10 clips cannot be told: leave out only_esc10, or give "
            "it a column noise"
        )
    if exclude_esc10 or only_esc10:
        clips = clips.select(
            [row for row, noise in enumerate(clips["noise"]) if (noise in ESC10_CLASSES) == only_esc10]
        )
    return _decode(_not_empty(clips, source, split), source, on_error, decoded)


def leave_out_long(corpus: Dataset | IterableDataset, max_seconds: float) -> Dataset | IterableDataset:
    """
    The rows of a loaded corpus of at most `max_seconds`.

    One with a length gains a column `num_samples`, at 16 kHz, read from the headers of files that are not decoded yet.
    Raises ValueError when no row is left, and `UnreadableAudioError`, also for pairs whose halves differ in length.
    """
    limit = max_seconds * SAMPLING_RATE
    if isinstance(corpus, IterableDataset):
        return corpus.filter(lambda audio: len(audio) <= limit, input_columns="audio")
    if corpus.features["audio"] == ENCODED:
        decode = corpus.format["format_kwargs"]["transform"]  # set aside: adding a column may read all rows
        corpus = corpus.with_format(None)
        audio = corpus.select_columns([name for name in AUDIO_COLUMNS if name in corpus.column_names])
        num_samples = count_row_samples(audio, decode.__self__.corpus)
        corpus = corpus.add_column("num_samples", num_samples).with_transform(decode)
    else:
        num_samples = [len(row["audio"]) for row in corpus]
        corpus = corpus.add_column("num_samples", num_samples)
    short = [row for row, length in enumerate(num_samples) if length <= limit]
    if not short:
        raise ValueError(f"not one of {len(num_samples)} utterances is of at most {max_seconds} s; raise max_seconds")
    return corpus.select(short)


def _check_arguments(split: str, on_error: str, streaming: bool | None, decoded: bool) -> None:
    if split not in SPLIT_NAMES:
        raise ValueError(f"unknown split {split!r}; choose one of {list(SPLIT_NAMES)}")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"unknown on_error {on_error!r}; choose 'raise' or 'skip'")
    if streaming and decoded:
        raise ValueError("a streamed corpus cannot be decoded in advance; set streaming or decoded, not both")


def _open_transcribed(source: Source, split: str, on_error: str, streaming: bool | None) -> Dataset | IterableDataset:
    """Rows `audio` (encoded), `text`, `speaker` and what else is known, without those that have no text."""
    if source.digit_strings:
        return _open_digit_strings(source, split, on_error)
    dataset, corpus = _open(source, split, on_error, streaming)
    dataset = _rename_columns(dataset, source, corpus, needed="text")
    if isinstance(dataset, IterableDataset):
        return dataset.filter(TextFilter(source.name), batched=True, input_columns="text")
    with_text = [row for row, text in enumerate(dataset["text"]) if _has_text(text)]
    if len(with_text) < len(dataset):
        dropped = len(dataset) - len(with_text)
        logger.warning("%s, %s: dropped %d of %d rows without text", source.name, split, dropped, len(dataset))
        dataset = dataset.select(with_text)
    return _not_empty(dataset, source.name, split)


def _open_clips(source: Source, split: str, on_error: str) -> Dataset:
    """Rows `audio` (encoded), `noise`. The one split of the ESC-50 Hub repository is divided by its folds."""
    if source.name == "embedded":
        speech = _open_transcribed(source, "train", on_error, streaming=False)
        speech = speech.select(range(list(SPLIT_NAMES).index(split), len(speech), 8))  # each split's own
        speech = [row["audio"] for row in AudioDecoder(source.name, skip=False).decode_rows(speech)]
        clips = make_noise_clips(split, speech)
        return _write_arrow(clips, Features(audio=ENCODED, noise=Value("string")))
    undivided = find_hub_corpus(source.name) is ESC50
    clips, corpus = _open(source, "train" if undivided else split, on_error, streaming=False)
    if undivided:
        clips = clips.select([row for row, fold in enumerate(clips["fold"]) if fold in ESC50_FOLDS[split]])
    clips = _rename_columns(clips, source, corpus)
    classes = clips["noise"] if "noise" in clips.column_names else [None] * len(clips)
    if None not in classes:
        return clips.select_columns(["audio", "noise"])
    classes = [name or "" for name in classes]
    return clips.select_columns("audio").add_column("noise", classes, feature=Value("string"))


def _open_digit_strings(source: Source, split: str, on_error: str) -> Dataset:
    """Digit strings of a split's own recordings; without a validation split, held-out training recordings stand in."""
    if source.config is not None and not source.config.isdecimal():
        raise ValueError(f"{source.config!r} is not a number of strings; write digit_strings:FOLDER:COUNT")
    isolated = Source(source.name, text=source.text)
    if split == "test" or has_split(source.name, "validation"):
        digits = _open_transcribed(isolated, split, on_error, streaming=False)
    else:
        digits = hold_out_recordings(_open_transcribed(isolated, "train", on_error, streaming=False), split)
    waveforms = AudioDecoder(source.name, skip=on_error == "skip").decode_rows(digits)
    num_strings = NUM_STRINGS[split] if source.config is None else int(source.config)
    strings = compose_digit_strings(list(waveforms), num_strings, SPLIT_SEEDS[split])
    return _write_arrow(strings, Features(audio=ENCODED, text=Value("string"), speaker=Value("string")))


def _open(
    source: Source, split: str, on_error: str, streaming: bool | None
) -> tuple[Dataset | IterableDataset, HubCorpus]:
    """The corpus with the columns it has, and what is known of them."""
    folder = Path(source.name)
    if source.layout == "voicebank_demand":
        return open_voicebank_demand(folder, source.config, split, on_error), HubCorpus()
    if source.layout == "chime4":
        return open_chime4(folder, source.config, split, on_error), HubCorpus()
    if source.name == "embedded" or (folder.is_dir() and not is_hub_copy(folder)):
        if source.config is not None:
            raise ValueError(f"corpus {source.name} has no configurations; leave out {source.config!r}")
        if source.name == "embedded":
            with as_file(files("clearspeech.processing") / "embedded" / f"{split}.parquet") as path:
                return read_parquet(path), HubCorpus()
        return open_folder_split(folder, split, on_error), HubCorpus()
    if not folder.is_dir() and (source.name.startswith((".", "/", "~")) or source.name.count("/") > 1):
        raise FileNotFoundError(f"no corpus folder {source.name}; give 'embedded', a folder, or a Hub id")
    corpus = find_hub_corpus(source.name)
    if corpus is VOICEBANK_DEMAND:
        return open_voicebank_demand_hub(source.name, source.config, split, streaming), corpus
    streaming = corpus.streaming if streaming is None else streaming
    revision = None if folder.is_dir() else corpus.revision
    return open_hub_split(source.name, source.config or corpus.config, split, streaming, revision), corpus


def _rename_columns(
    dataset: Dataset | IterableDataset, source: Source, corpus: HubCorpus, needed: str = "audio"
) -> Dataset | IterableDataset:
    """Our columns under our names and types. Raises ValueError when `audio` or the `needed` one is not there."""
    available = dataset.column_names or list(next(iter(dataset)))
    candidates = {name: (name,) for name in AUDIO_COLUMNS + LABEL_COLUMNS}
    candidates["text"] = TEXT_COLUMNS if corpus.text is None else (corpus.text,)
    candidates["speaker"] = SPEAKER_COLUMNS if corpus.speaker is None else (corpus.speaker,)
    candidates |= {name: (column,) for name, column in corpus.columns}
    if source.text is not None:
        candidates["text"] = (source.text,)
    theirs = {name: [column for column in columns if column in available] for name, columns in candidates.items()}
    theirs = {name: columns[0] for name, columns in theirs.items() if columns}
    for name in dict.fromkeys(("audio", needed)):
        if name not in theirs:
            hint = f"; choose one as {source.name}@COLUMN" if name == "text" else ""
            wanted = " or ".join(candidates[name])
            raise ValueError(f"corpus {source.name} has no {name} column {wanted}; it has {available}{hint}")
    dataset = dataset.select_columns(list(theirs.values()))
    dataset = dataset.rename_columns({column: name for name, column in theirs.items() if column != name})
    return _set_types(dataset, list(theirs))


def _set_types(dataset: Dataset | IterableDataset, names: list[str]) -> Dataset | IterableDataset:
    """Audio as encoded files, all else as strings, and what pairs and speech must have: "" where unknown."""
    required = ("speaker", "noise") if "clean_audio" in names else ("speaker",)
    absent = [name for name in required if name not in names]
    if isinstance(dataset, IterableDataset):
        if absent:
            dataset = dataset.map(partial(_add_empty, names=absent))
        types = {name: ENCODED_STRUCT if name in AUDIO_COLUMNS else Value("string") for name in [*names, *absent]}
        return dataset.cast(Features(types))
    for name in names:
        if name in AUDIO_COLUMNS:
            dataset = dataset.cast_column(name, ENCODED)
        elif dataset.features[name] != Value("string"):  # a new column, because a cast would copy the audio with it
            values = [None if value is None else str(value) for value in dataset[name]]
            dataset = dataset.remove_columns(name).add_column(name, values, feature=Value("string"))
    for name in absent:
        dataset = dataset.add_column(name, [""] * len(dataset), feature=Value("string"))
    return dataset


def _add_empty(row: dict, names: list[str]) -> dict:
    return dict.fromkeys(names, "")


def _has_text(text: str | None) -> bool:
    return bool(text and normalize_text(text))


class TextFilter:
    """`_has_text` for the batches of a stream; counts what it drops."""

    def __init__(self, corpus: str):
        self.streamed = DropCounter(corpus, "no text")

    def __call__(self, texts: list[str | None]) -> list[bool]:
        kept = [_has_text(text) for text in texts]
        self.streamed.count(len(kept), sum(kept))
        return kept


def _not_empty(dataset: Dataset, name: str, split: str) -> Dataset:
    if len(dataset) == 0:
        raise ValueError(f"split {split!r} of corpus {name} has no rows with the chosen text column or noise classes")
    return dataset


def _join(
    parts: list[Dataset | IterableDataset], split: str, streaming: bool | None, decoded: bool
) -> Dataset | IterableDataset:
    shared = [name for name in parts[0].column_names if all(name in part.column_names for part in parts)]
    parts = [part.select_columns(shared) for part in parts]
    if streaming or any(isinstance(part, IterableDataset) for part in parts):
        if decoded:
            raise ValueError("a corpus is streamed because of its size: set streaming=False, or leave out decoded")
        parts = [part if isinstance(part, IterableDataset) else _stream(part) for part in parts]
        if split == "train" and len(parts) > 1:
            return interleave_datasets(parts, stopping_strategy="all_exhausted")
    return concatenate_datasets(parts)


def _stream(dataset: Dataset) -> IterableDataset:
    types = {name: ENCODED_STRUCT if name in AUDIO_COLUMNS else Value("string") for name in dataset.column_names}
    return dataset.to_iterable_dataset().cast(Features(types))


def _decode(
    dataset: Dataset | IterableDataset, corpus: str, on_error: str, decoded: bool
) -> Dataset | IterableDataset:
    """From encoded files to waveforms: as the rows stream by, all at once, or when a row is read."""
    decoder = AudioDecoder(corpus, skip=on_error == "skip")
    if isinstance(dataset, IterableDataset):
        return dataset.map(decoder.decode_streamed_batch, batched=True, batch_size=8)
    if decoded:
        audio = [name for name in AUDIO_COLUMNS if name in dataset.column_names]
        types = {name: List(Value("float32")) if name in audio else Value("string") for name in dataset.column_names}
        dataset = _write_arrow(decoder.decode_rows(dataset), Features(types))
        dataset = dataset.with_format("numpy", columns=audio, output_all_columns=True)
    else:
        if decoder.skip:
            rows = ({"number": number} | row for number, row in enumerate(dataset))
            dataset = dataset.select([row["number"] for row in decoder.decode_rows(rows)])
        dataset = dataset.with_transform(AudioDecoder(corpus, skip=False).decode_batch)
    if decoder.num_skipped:
        logger.warning("%s: skipped %d unreadable files, kept %d rows", corpus, decoder.num_skipped, len(dataset))
    if len(dataset) == 0:
        raise ValueError(f"corpus {corpus}: not one of its audio files can be read")
    return dataset


@cache
def _arrow_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="clearspeech_corpora_")  # removed when Python exits


def _write_arrow(rows: Iterable[dict], features: Features) -> Dataset:
    """Write rows to a temporary Arrow file and map it into memory, so that worker processes share it."""
    with tempfile.NamedTemporaryFile(dir=_arrow_folder().name, suffix=".arrow", delete=False) as file:
        path = file.name
    with ArrowWriter(path=path, features=features, writer_batch_size=100) as writer:
        for row in rows:
            writer.write(row)
        writer.finalize()
    return Dataset.from_file(path)
