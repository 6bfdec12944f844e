"""Corpora in folders: `<split>/metadata.csv` with audio files beside it (`audiofolder`), or `<split>.parquet`."""

from pathlib import Path

import pyarrow.csv
import pyarrow.parquet
from datasets import Dataset

from .audio_reading import AUDIO_COLUMNS

SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "dev", "valid"), "test": ("test",)}
FILE_COLUMNS = {"file_name": "audio", "clean_file_name": "clean_audio"}
NO_FILE = {"bytes": None, "path": None}  # the decoder refuses it, or skips and counts it


def has_split(folder: str | Path, split: str) -> bool:
    return _find_split(Path(folder), split) is not None


def open_folder_split(folder: Path, split: str, on_error: str) -> Dataset:
    """
    The rows of a split with all their columns and encoded audio.

    on_error: with "raise", a missing file that metadata.csv names raises FileNotFoundError, and a row that names none
    ValueError; with "skip" both are left to the decoder, which counts them. Raises ValueError for an unknown split.
    """
    path = _find_split(folder, split)
    if path is None:
        found = sorted(path.stem for path in folder.iterdir() if path.is_dir() or path.suffix == ".parquet")
        raise ValueError(f"corpus {folder} has no split {split!r}; it has {found or 'no split at all'}")
    return read_parquet(path) if path.suffix == ".parquet" else _read_metadata(path, on_error)


def read_parquet(path: Path) -> Dataset:
    """Read a table here, not through the cache of `load_dataset`: these are small, and an edit must show at once."""
    try:
        return Dataset(pyarrow.parquet.read_table(path))
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def encoded_cell(path: Path) -> dict:
    """What `Audio(decode=False)` stores of a file that is read later."""
    return {"bytes": None, "path": str(path)}


def gather_rows(rows: list[dict], corpus: str, on_error: str) -> Dataset:
    """Rows with encoded audio as a dataset. Missing files as in `open_folder_split`; ValueError for no rows at all."""
    if not rows:
        raise ValueError(f"{corpus} has no rows")
    if on_error == "raise":
        check_files([row[name] for row in rows for name in AUDIO_COLUMNS if name in row], corpus)
    return Dataset.from_list(rows)


def check_files(cells: list[dict], corpus: str) -> None:
    """Raises FileNotFoundError for files of encoded cells that are not there: how many, and the first of them."""
    missing = [cell["path"] for cell in cells if not Path(cell["path"]).exists()]
    if missing:
        raise FileNotFoundError(f"{len(missing)} audio files of {corpus} are missing: {missing[:5]}")


def _find_split(folder: Path, split: str) -> Path | None:
    candidates = [folder / name for each in SPLIT_NAMES[split] for name in (f"{each}.parquet", each)]
    return next((path for path in candidates if path.exists()), None)


def _read_metadata(folder: Path, on_error: str) -> Dataset:
    metadata = folder / "metadata.csv"
    if not metadata.exists():
        raise FileNotFoundError(f"{folder} has no metadata.csv; it needs one with the columns file_name and text")
    # texts such as "12" or "null" stay texts
    options = pyarrow.csv.ConvertOptions(strings_can_be_null=False, column_types=_all_strings(metadata))
    columns = pyarrow.csv.read_csv(metadata, convert_options=options).to_pydict()
    if "file_name" not in columns:
        raise ValueError(f"{metadata} has no column file_name; it has {list(columns)}")
    for column, ours in FILE_COLUMNS.items():
        if column in columns:
            names = columns.pop(column)
            columns[ours] = [encoded_cell(folder / name) if name.strip() else NO_FILE for name in names]
            if on_error == "raise":
                _check_names(names, column, metadata)
                check_files(columns[ours], str(metadata))
    return Dataset.from_dict(columns)


def _check_names(names: list[str], column: str, metadata: Path) -> None:
    """Raises ValueError for rows that name no file: how many, and the first of them."""
    empty = [row for row, name in enumerate(names, start=1) if not name.strip()]
    if empty:
        raise ValueError(f"{len(empty)} rows of {metadata} have no {column}: numbers {empty[:5]} below the header")


def _all_strings(metadata: Path) -> dict[str, pyarrow.DataType]:
    return {name: pyarrow.string() for name in pyarrow.csv.open_csv(metadata).schema.names}
