"""
Measured results of a method, `hub_cards/results/<method>.json`: the one place that cards and figures are made from.

    update_results(path, "stable_token", runs=[Run("table4", "full", 0, "an4", "test", 3_500_000, command, metrics)])

Every entry has an identity (a run: table, row, seed, corpus, split, condition; a benchmark or count: name); adding one
again replaces it. Writers wait for one another on a lock beside the file, and the file is replaced in one move: it is
whole at any moment, also under several processes and after a SIGKILL.
"""

import json
import math
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock

RUN_IDENTITY = ("table", "row", "seed", "corpus", "split", "condition")
SECTIONS = {"runs": RUN_IDENTITY, "benchmarks": ("name",), "counts": ("name",)}


@dataclass(frozen=True)
class Run:
    """
    One row of one table, measured on one corpus.

    table: the paper's table or figure (`table1`, `figure3`); row: its row in the paper's words; parameters: of the
    model; command: what trained it, from the repository's root; metrics: names to rates in percent, or their own unit;
    condition: under which it was measured, where a row has an entry for each; None is not written.

    Raises ValueError for an empty name, a wrong type, and metrics that are missing or not finite.
    """

    table: str
    row: str
    seed: int
    corpus: str
    split: str
    parameters: int
    command: str
    metrics: dict[str, float]
    condition: str | None = None

    def __post_init__(self):
        named = ("table", "row", "corpus", "split", "command")
        for name in named if self.condition is None else (*named, "condition"):
            value = self.__dict__[name]
            if not isinstance(value, str) or not value:
                raise ValueError(f"{name} of a run must be a string that is not empty; got {value!r}.")
        for name in ("seed", "parameters"):
            value = self.__dict__[name]
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name} of run {self.row!r} must be a whole number of at least 0; got {value!r}.")
        if not self.metrics:
            raise ValueError(f"run {self.row!r} on {self.corpus} has no metrics.")
        for name, value in self.metrics.items():
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
                raise ValueError(f"metric {name!r} of run {self.row!r} must be a finite number; got {value!r}.")


@dataclass(frozen=True)
class Results:
    """The file's content. benchmarks and counts: dicts with a `name`, see the design of the results file."""

    method: str
    environment: dict[str, str]
    runs: list[Run]
    benchmarks: list[dict[str, Any]]
    counts: list[dict[str, Any]]

    def find(self, **wanted: str | int | None) -> list[Run]:
        """The runs whose fields have the wanted values, for example `find(table="table4", corpus="an4")`."""
        return [run for run in self.runs if all(run.__dict__[name] == value for name, value in wanted.items())]

    def seeds_mean(self, metric: str, **wanted: str | int | None) -> float | None:
        """Mean of a metric over the found runs (the seeds of one row on one corpus); None where none has it."""
        values = [run.metrics[metric] for run in self.find(**wanted) if metric in run.metrics]
        return sum(values) / len(values) if values else None


def read_results(path: str | Path, method: str) -> Results:
    """
    The results in a file; empty ones where there is none yet.

    Raises ValueError for a file that is not JSON, is another method's, has unknown or missing fields, or repeats an
    identity.
    """
    path = Path(path)
    if not path.exists():
        return Results(method, {}, [], [], [])
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}. Restore it from the repository.") from error
    try:
        runs = [Run(**run) for run in content.pop("runs")]
        results = Results(runs=runs, **content)
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} does not have the fields of a results file: {error}.") from error
    if results.method != method:
        raise ValueError(f"{path} holds results of {results.method!r}, not of {method!r}.")
    for section in SECTIONS:
        identities = [_identity(section, entry) for entry in results.__dict__[section]]
        if len(set(identities)) < len(identities):
            repeated = next(identity for identity in identities if identities.count(identity) > 1)
            raise ValueError(f"{path} has {repeated} twice in {section}.")
    return results


def update_results(
    path: str | Path,
    method: str,
    runs: Iterable[Run] = (),
    benchmarks: Iterable[dict[str, Any]] = (),
    counts: Iterable[dict[str, Any]] = (),
) -> Results:
    """
    Add entries to a file, or replace those of the same identity, and write down this machine's environment.

    Returns the new content. Raises ValueError for a benchmark or count without a name, and as `read_results`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        old = read_results(path, method)
        added = {"runs": list(runs), "benchmarks": list(benchmarks), "counts": list(counts)}
        merged = {section: _merge(section, old.__dict__[section], entries) for section, entries in added.items()}
        results = Results(method, environment(), **merged)
        content = asdict(results) | {"runs": [_without_none(run) for run in results.runs]}
        write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return results


def environment() -> dict[str, str]:
    """Versions and the device, for the record."""
    device = f"cpu, {os.cpu_count()} cores"
    if torch.cuda.is_available():
        device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": device,
    }


def write_atomically(path: str | Path, content: str | bytes):
    """Write a file aside and move it into place: readers see the old content or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    aside.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    os.replace(aside, path)


def _without_none(run: Run) -> dict[str, Any]:
    return {name: value for name, value in asdict(run).items() if value is not None}


def _identity(section: str, entry: Run | dict[str, Any]) -> tuple:
    fields = asdict(entry) if isinstance(entry, Run) else entry
    missing = [name for name in SECTIONS[section] if name not in fields]
    if missing:
        raise ValueError(f"an entry of {section} needs {', '.join(missing)}; got {fields}.")
    return tuple(fields[name] for name in SECTIONS[section])


def _merge(section: str, old: list, added: list) -> list:
    """In order, a replaced entry at its old place."""
    entries = {_identity(section, entry): entry for entry in old}
    entries |= {_identity(section, entry): entry for entry in added}
    return list(entries.values())
