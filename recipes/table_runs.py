"""
What the runners of the papers' tables share: train and measure every row from one base, skip what is in the results.

A row whose entries are in the results file with the same command and base is skipped; an interrupted one goes on from
its last checkpoint, whatever stopped it. Rows can run side by side, each on one core.
"""

import argparse
import fcntl
import json
import os
import shlex
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import ge, gt, le, lt
from pathlib import Path

from measured_speech import corpus_label

from clearspeech.trainers.results import Results, Run, read_results, update_results, write_atomically

CARDS = Path("hub_cards")
BASE_COMMAND = ("python", "recipes/pretrain_mini_whisper.py")
BASE_FILES = ("model.safetensors", "audio_tokenizer/model.safetensors", "unit_pieces.model")  # what a base may have
CLEAN = "0"  # the condition under which nothing is added to the speech; its figures have plain names
Entries = tuple[tuple[str, ...], ...]  # (table, row), or (table, row, condition)


@dataclass(frozen=True)
class Row:
    """One training, and the tables' rows that show it. flags: what differs from the full model."""

    name: str
    flags: tuple[str, ...]
    seeds: tuple[int, ...]
    entries: Entries


@dataclass(frozen=True)
class Job:
    """
    One model to train and to measure.

    command: of the training, without its folder; None for the base, which is only measured. evaluation: the command
    that measures, without model and folder; of its figures an entry with the condition "0.3" takes `wer/0.3` as `wer`.
    validation: the same on the validation split, whose figures stand beside the others as `validation/<name>`; None
    for none. corpora: what is measured on. unrecorded: flags of the training that do not change its outcome. base: the
    folder that it starts from, `--base_model` when None; that is None where all rows start from random weights.
    """

    name: str
    entries: Entries
    seed: int
    command: list[str] | None
    evaluation: list[str]
    corpora: list[str]
    unrecorded: tuple[str, ...] = ()
    validation: list[str] | None = None
    base: str | None = None

    @property
    def title(self) -> str:
        return f"{self.name}, seed {self.seed}" if self.command else self.name


@dataclass(frozen=True)
class Goal:
    """What was to be reached on a corpus: a `value` that stands in `relation` to `limit`, one of <, <=, > and >=."""

    text: str
    corpus: str
    value: float
    relation: str
    limit: float

    @property
    def is_met(self) -> bool:
        return {"<": lt, "<=": le, ">": gt, ">=": ge}[self.relation](self.value, self.limit)


def add_shared_arguments(parser: argparse.ArgumentParser, method: str, rows: Iterable[Row], base_model: str | None):
    """The arguments that every runner has; base_model: its default, None where there is no base to choose."""
    names = [row.name for row in rows]
    parser.add_argument("--rows", nargs="+", default=names, choices=names, metavar="ROW", help=f"of: {names}")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these seeds")
    parser.add_argument("--jobs", type=int, default=1, help="rows at once, each on one core")
    parser.add_argument("--data", default="../shared/data", help="folder of the real corpora")
    parser.add_argument("--test_dataset", nargs="+", help="test corpora instead of digit strings and an4")
    parser.add_argument("--noise_dataset", nargs="+", help="noise corpora instead of esc50_noise")
    if base_model is None:
        parser.set_defaults(base_model=None)
    else:
        parser.add_argument("--base_model", default=base_model, help="the mini Whisper")
    parser.add_argument("--runs", type=Path, default=Path(f"outputs/reproduce_{method}"), help="models and logs")
    parser.add_argument("--results", type=Path, default=CARDS / "results" / f"{method}.json")
    parser.add_argument("--figures", type=Path, default=CARDS / "figures")


def fill_in_corpora(args: argparse.Namespace):
    """The corpora in `--data` where no others are given."""
    args.test_dataset = args.test_dataset or [f"digit_strings:{args.data}/spoken_digits", f"{args.data}/an4"]
    args.noise_dataset = args.noise_dataset or [f"{args.data}/esc50_noise"]


def chosen_rows(rows: Sequence[Row], names: Iterable[str], seeds: Iterable[int] | None) -> list[tuple[Row, int]]:
    """
    Rows and seeds in the order of work: every row once, then the further seeds.

    Raises:
        ValueError: the named rows have none of these seeds.
    """
    by_seed = sorted((seed, index) for index, row in enumerate(rows) for seed in row.seeds if row.name in names)
    chosen = [(rows[index], seed) for seed, index in by_seed if seeds is None or seed in seeds]
    if not chosen:
        known = ", ".join(map(str, sorted({seed for seed, _ in by_seed})))
        raise ValueError(f"Nothing to do: these rows have the seeds {known}; got --seeds {' '.join(map(str, seeds))}.")
    return chosen


def recorded(command: Iterable[str], base_model: str | None) -> str:
    """
    The command as the results keep it, with a checksum of the base, if there is one: another base is another training.

    Raises:
        FileNotFoundError: a base without weights.
    """
    if base_model is None:
        return shlex.join(command)
    checksum = 0
    for file in (path for name in BASE_FILES if (path := Path(base_model, name)).exists()):
        checksum = zlib.crc32(file.read_bytes(), checksum)
    if not checksum:
        raise FileNotFoundError(f"{base_model} has none of {', '.join(BASE_FILES)}: nothing to start from.")
    return f"{shlex.join(command)}  # base {checksum:08x}"


def is_finished(results: Results, entries: Entries, seed: int, command: str, corpora: list[str]) -> bool:
    """Whether all corpora of all the entries stand in the results with this very command."""
    found = [
        results.find(**named(entry), seed=seed, corpus=corpus, split="test", command=command)
        for entry in entries
        for corpus in corpora
    ]
    return all(found)


def named(entry: tuple[str, ...]) -> dict[str, str | None]:
    """The parts of an entry by their names in a run."""
    return dict(zip(("table", "row", "condition"), (*entry, None)))


def under_condition(metrics: dict[str, float], condition: str | None) -> dict[str, float]:
    """The figures of one condition under their plain names; all figures as they are where it is None."""
    if condition is None:
        return metrics
    parts = {name: name.partition("/") for name in metrics}
    return {parts[name][0]: value for name, value in metrics.items() if (parts[name][2] or CLEAN) == condition}


def folder_name(name: str, seed: int) -> str:
    """Where a row's model lies below `--runs`."""
    return f"{name.replace('w/o', 'without').replace(',', '').replace(' ', '_')}-{seed}"


def run_logged(command: list[str], log: Path, lock) -> None:
    """Run a recipe on one thread with its output in `log`; it holds `lock`, so that an orphan is waited for."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("a") as output:
        print("$", shlex.join(command), file=output, flush=True)
        command = [sys.executable, *command[1:]]
        done = subprocess.run(command, stdout=output, stderr=output, env=environment, pass_fds=[lock.fileno()])
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(f"{command[1]} ended with {done.returncode}; the end of {log}:\n{tail}")


def is_trained(folder: Path) -> bool:
    """Whether a training has come to its end in `folder`."""
    state = folder / "run.json"
    return state.exists() and json.loads(state.read_text())["trained"]


def trained_command(folder: Path) -> str | None:
    """The command, as `recorded`, of the training that has come to its end in `folder`; None where there is none."""
    return json.loads((folder / "run.json").read_text())["command"] if is_trained(folder) else None


def train_once(command: list[str], record: str, folder: Path, lock, going_on: Sequence[str] = ("--resume",)) -> None:
    """
    Train into `folder` unless that is done; an interrupted training goes on. record: see `recorded`; going_on: flags
    with which the recipe does that.

    Raises:
        RuntimeError: the folder holds another training, or training failed.
    """
    state = folder / "run.json"
    known = json.loads(state.read_text()) if state.exists() else {"command": record, "trained": False}
    if known["command"] != record:
        raise RuntimeError(
            f"{folder} holds another training: {known['command']}\nremove it, or give another --runs folder."
        )
    if not known["trained"]:
        write_atomically(state, json.dumps(known))
        run_logged([*command, "--output_dir", str(folder), *going_on], folder / "train.log", lock)
        write_atomically(state, json.dumps(known | {"trained": True}))


def evaluate(command: list[str], model: str, folder: Path, lock) -> dict:
    """Measure a model; what `evaluation.json` holds."""
    folder.mkdir(exist_ok=True)
    run_logged([*command, "--model", model, "--output_dir", str(folder)], folder / "evaluate.log", lock)
    return json.loads((folder / "evaluation.json").read_text())


def measure(job: Job, model: str, folder: Path, lock) -> tuple[int, dict[str, dict[str, float]]]:
    """Parameters of a job's model, and its figures on each corpus."""
    measured = evaluate(job.evaluation, model, folder, lock)
    metrics = measured["metrics"]
    if job.validation:
        validation = evaluate(job.validation, model, folder / "validation", lock)["metrics"]
        for corpus, figures in validation.items():
            known = metrics.setdefault(corpus, {})
            known |= {f"validation/{name}": value for name, value in figures.items()}
    return measured["parameters"], metrics


def run(job: Job, args: argparse.Namespace, method: str) -> None:
    """
    Train and measure one model and add it to the results, unless it is there.

    Raises:
        RuntimeError: training or measuring failed, or was of other corpora than the job's.
    """
    record = recorded(job.command or BASE_COMMAND, job.base or args.base_model)
    if is_finished(read_results(args.results, method), job.entries, job.seed, record, job.corpora):
        print(f"{job.title}: in {args.results} already", flush=True)
        return
    folder = args.runs / folder_name(job.name, job.seed)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        started = time.monotonic()
        print(f"{job.title}: started, log in {folder}", flush=True)
        if job.command:
            train_once([*job.command, *job.unrecorded], record, folder, lock)
        parameters, measured = measure(job, str(folder) if job.command else args.base_model, folder, lock)
        if set(measured) != set(job.corpora):
            raise RuntimeError(f"{folder} was measured on {list(measured)}, not on {job.corpora}.")
        shared = dict(seed=job.seed, split="test", parameters=parameters, command=record)
        runs = [
            Run(**entry, **shared, corpus=corpus, metrics=under_condition(metrics, entry["condition"]))
            for entry in map(named, job.entries)
            for corpus, metrics in measured.items()
        ]
        update_results(args.results, method, runs)
    print(f"{job.title}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)


def run_all(jobs: Sequence[Job], args: argparse.Namespace, method: str) -> list[str]:
    """Run all jobs, `--jobs` at once; one that fails does not stop the others. Returns what failed, and why."""
    failures = []
    with ThreadPoolExecutor(args.jobs) as pool:
        for job, future in [(job, pool.submit(run, job, args, method)) for job in jobs]:
            try:
                future.result()
            except (RuntimeError, FileNotFoundError) as error:
                failures.append(f"{job.name}, seed {job.seed}: {error}")
                print(failures[-1], file=sys.stderr, flush=True)
    return failures


def exit_on_failures(failures: list[str], jobs: Sequence[Job]):
    """Raises SystemExit when there is a failure."""
    if failures:
        sys.exit(f"{len(failures)} of {len(jobs)} models failed; the same command goes on where they stopped.")


def labels_of(sources: Iterable[str]) -> list[str]:
    """The names of corpora in tables."""
    return [corpus_label(source) for source in sources]


def format_table(
    results: Results,
    corpus: str,
    tables: Mapping[str, Iterable[str]],
    columns: Mapping[str, str],
    paper_figures: Callable[[str, str], Mapping[str, float]],
) -> list[str]:
    """Lines of text: each measured row of `tables` on one corpus, means over seeds, the paper's figure in brackets."""
    widths = [max(16, len(title) + 2) for title in columns.values()]
    lines = [" " * 46 + "".join(f"{title:>{width}}" for title, width in zip(columns.values(), widths))]
    for table, row in ((table, row) for table, rows in tables.items() for row in rows):
        found = results.find(table=table, row=row, corpus=corpus)
        if found:
            paper = paper_figures(table, row)
            values = {name: results.seeds_mean(name, table=table, row=row, corpus=corpus) for name in columns}
            cells = ["" if value is None else f"{value:.2f}" for value in values.values()]
            cells = [f"{c} ({paper[n]:.2f})" if n in paper and c else c for c, n in zip(cells, values)]
            title = f"{table} {row}" + (f" [{len(found)} seeds]" if len(found) > 1 else "")
            lines.append(f"{title:46}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths)))
    return lines


def format_goals(goals: Iterable[Goal]) -> list[str]:
    """Lines of text: what was to be reached, met or missed."""
    return [
        f"{'met' if goal.is_met else 'MISSED':8}{goal.value:8.2f} {goal.relation:2} {goal.limit:6.2f}  "
        f"{goal.corpus}: {goal.text}"
        for goal in goals
    ]
