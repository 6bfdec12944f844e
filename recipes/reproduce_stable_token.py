"""
Train and measure every row of the paper's Tables 4 and 5 from one base, on real speech, beside the paper's figures.

    python recipes/reproduce_stable_token.py --jobs 2
    python recipes/reproduce_stable_token.py --rows full "w/o multi-branch" --seeds 0

Rows differ from one another in the flags of `ROWS` only; all start from `hub_cards/mini/whisper` and meet the same
noise. Flags that this page does not know go to `recipes/train_stable_token.py`. A row whose entries are in the results
file with the same command and base is skipped; an interrupted one goes on from its last checkpoint, whatever stopped
it. Hardware: one CPU core per job; 11 trainings of some 12 minutes. Writes `hub_cards/results/stable_token.json` and
the figures; `recipes/write_card.py` then writes the card.
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from evaluate_stable_token import CONDITIONS, corpus_label
from train_stable_token import PRESETS

from clearspeech.trainers.figures import plot_unit_edit_distance, plot_voter_counts
from clearspeech.trainers.results import Results, Run, read_results, update_results, write_atomically

METHOD = "stable_token"
CARDS = Path("hub_cards")
MAX_STEPS = 1500  # twice the preset's: what the word error rates still gain from


@dataclass(frozen=True)
class Row:
    """One training, and the tables' rows that show it. flags: what differs from the full model."""

    name: str
    flags: tuple[str, ...]
    seeds: tuple[int, ...]
    entries: tuple[tuple[str, str], ...]


WITHOUT_CONSENSUS = ("--consensus_weight", "0")
WITHOUT_NOISE = (*WITHOUT_CONSENSUS, "--noise_aware", "False")
ROWS = (
    Row("full", (), (0, 1, 2), (("table4", "full"), ("table5", "N=5"))),
    Row(
        "w/o multi-branch",
        (*WITHOUT_NOISE, "--num_voters", "1"),
        (0, 1, 2),
        (("table4", "w/o multi-branch"), ("table5", "N=1")),
    ),
    Row("w/o consensus loss", WITHOUT_CONSENSUS, (0,), (("table4", "w/o consensus loss"),)),
    Row("w/o noise-aware training", WITHOUT_NOISE, (0,), (("table4", "w/o noise-aware training"),)),
    Row(
        "single branch, noise as augmentation",
        ("--num_voters", "1", "--noise_as_augmentation", "True"),
        (0,),
        (("control", "single branch, noise as augmentation"),),
    ),
    Row("N=3", ("--num_voters", "3"), (0,), (("table5", "N=3"),)),
    Row("N=7", ("--num_voters", "7"), (0,), (("table5", "N=7"),)),
)

# The paper's UED and WER (LibriSpeech test-clean, test-other). Tables 4 and 5 print the columns of pink and brown
# noise in another order than Table 1 does for the same figures (full: 9.76, 9.37); taken here as Table 1 names them.
PAPER_COLUMNS = ("gaussian", "pink", "brown", "bit_crush", "real", "real_ood")
PAPER = {
    ("table4", "full"): ((12.93, 9.76, 9.37, 7.32, 10.65, 10.96), (2.03, 4.68)),
    ("table4", "w/o consensus loss"): ((24.80, 19.06, 17.81, 14.03, 16.97, 17.43), (2.03, 4.88)),
    ("table4", "w/o noise-aware training"): ((30.77, 23.05, 21.30, 17.32, 20.95, 21.51), (2.19, 5.52)),
    ("table4", "w/o multi-branch"): ((34.53, 25.44, 24.58, 19.83, 23.68, 24.47), (2.39, 5.85)),
    ("table5", "N=3"): ((20.66, 15.42, 14.44, 11.55, 14.89, 15.27), (2.24, 5.47)),
    ("table5", "N=5"): ((18.68, 13.87, 13.11, 10.50, 14.06, 14.49), (2.22, 5.38)),
    ("table5", "N=7"): ((18.10, 13.35, 12.51, 9.84, 13.79, 14.11), (2.36, 5.52)),
}
TABLES = {
    "table4": ("full", "w/o consensus loss", "w/o noise-aware training", "w/o multi-branch"),
    "control": ("single branch, noise as augmentation",),
    "table5": ("N=1", "N=3", "N=5", "N=7"),
}


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """Our arguments, and the ones for training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [row.name for row in ROWS]
    parser.add_argument("--rows", nargs="+", default=names, choices=names, metavar="ROW", help=f"of: {names}")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these seeds")
    parser.add_argument("--jobs", type=int, default=1, help="rows at once, each on one core")
    parser.add_argument("--data", default="../shared/data", help="folder of the real corpora")
    parser.add_argument("--dataset", nargs="+", help="training corpora instead of digit strings and an4 (three times)")
    parser.add_argument("--test_dataset", nargs="+", help="test corpora instead of digit strings and an4")
    parser.add_argument("--noise_dataset", nargs="+", help="noise corpora instead of esc50_noise")
    parser.add_argument("--base_model", default=PRESETS["mini"]["base_model"], help="the mini Whisper")
    parser.add_argument("--runs", type=Path, default=Path("outputs/reproduce_stable_token"), help="models and logs")
    parser.add_argument("--results", type=Path, default=CARDS / "results" / f"{METHOD}.json")
    parser.add_argument("--figures", type=Path, default=CARDS / "figures")
    args, training_flags = parser.parse_known_args()
    args.dataset = args.dataset or [f"digit_strings:{args.data}/spoken_digits:4000", *[f"{args.data}/an4"] * 3]
    args.test_dataset = args.test_dataset or [f"digit_strings:{args.data}/spoken_digits", f"{args.data}/an4"]
    args.noise_dataset = args.noise_dataset or [f"{args.data}/esc50_noise"]
    if "--max_steps" not in training_flags:
        training_flags += ["--max_steps", str(MAX_STEPS)]
    return args, training_flags


def training_command(args: argparse.Namespace, row: Row, seed: int, training_flags: list[str]) -> list[str]:
    """What is recorded: everything but where the weights go."""
    command = ["python", "recipes/train_stable_token.py", "--preset", "mini", "--base_model", args.base_model]
    command += ["--dataset", *args.dataset, "--noise_dataset", *args.noise_dataset, "--seed", str(seed)]
    return command + list(row.flags) + training_flags


def recorded(command: list[str], base_model: str) -> str:
    """The command as the results keep it, with a checksum of the base: another base is another training."""
    checksum = zlib.crc32(Path(base_model, "model.safetensors").read_bytes())
    return f"{shlex.join(command)}  # base {checksum:08x}"


def is_finished(results: Results, entries: tuple[tuple[str, str], ...], seed: int, command: str, corpora: list[str]):
    """Whether all corpora of all the entries stand in the results with this very command."""
    found = [
        results.find(table=table, row=row, seed=seed, corpus=corpus, split="test", command=command)
        for table, row in entries
        for corpus in corpora
    ]
    return all(found)


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


def train_once(command: list[str], record: str, folder: Path, lock) -> None:
    """
    Train into `folder` unless that is done; an interrupted training goes on. record: see `recorded`.

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
        run_logged([*command, "--output_dir", str(folder), "--resume"], folder / "train.log", lock)
        write_atomically(state, json.dumps(known | {"trained": True}))


def evaluate(args: argparse.Namespace, model: str, folder: Path, lock) -> dict:
    """Measure a model on the test corpora; what `evaluation.json` holds."""
    command = ["python", "recipes/evaluate_stable_token.py", "--model", model, "--output_dir", str(folder)]
    command += ["--dataset", *args.test_dataset, "--noise_dataset", *args.noise_dataset, "--device", "cpu"]
    run_logged(command, folder / "evaluate.log", lock)
    return json.loads((folder / "evaluation.json").read_text())


def run(args: argparse.Namespace, name: str, entries: tuple, seed: int, command: list[str] | None) -> str:
    """Train (unless `command` is None: the base) and measure one model, add it to the results; returns its title."""
    title = f"{name}, seed {seed}" if command else name
    record = recorded(command or ["python", "recipes/pretrain_mini_whisper.py"], args.base_model)
    corpora = [corpus_label(source) for source in args.test_dataset]
    if is_finished(read_results(args.results, METHOD), entries, seed, record, corpora):
        print(f"{title}: in {args.results} already", flush=True)
        return title
    folder = args.runs / f"{name.replace('w/o', 'without').replace(',', '').replace(' ', '_')}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        started = time.monotonic()
        print(f"{title}: started, log in {folder}", flush=True)
        if command:
            train_once(command, record, folder, lock)
        measured = evaluate(args, str(folder) if command else args.base_model, folder, lock)
        runs = [
            Run(table, row, seed, corpus, "test", measured["parameters"], record, metrics)
            for table, row in entries
            for corpus, metrics in measured["metrics"].items()
        ]
        update_results(args.results, METHOD, runs)
    print(f"{title}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
    return title


def paper_figures(table: str, row: str) -> dict[str, float]:
    """The paper's figures for a row under our metric names; empty where it has none."""
    if (table, row) not in PAPER:
        return {}
    distances, (clean, other) = PAPER[table, row]
    figures = {f"ued/{name}": value for name, value in zip(PAPER_COLUMNS, distances)}
    mean = round(sum(distances) / len(distances) + 1e-9, 2)  # 10.165 is 10.17, as in Table 1
    return figures | {"ued_mean": mean, "wer": clean, "wer_other": other}


def format_tables(results: Results) -> str:
    """Every table on every corpus, means over seeds, the paper's figure beside ours in brackets."""
    columns = {"wer": "WER", "wer/real": "WER noisy", "ued_mean": "UED mean"}
    columns |= {f"ued/{name}": name for name in CONDITIONS}
    lines = []
    for corpus in dict.fromkeys(run.corpus for run in results.runs):
        base = results.seeds_mean("wer", table="base", corpus=corpus)
        lines += ["", f"{corpus}, test, in % (the paper's figure, on its own data)"]
        lines += [f"base Whisper: WER {base:.2f}"] if base is not None else []
        lines.append(" " * 46 + "".join(f"{title:>16}" for title in columns.values()))
        for table, rows in TABLES.items():
            for row in rows:
                found = results.find(table=table, row=row, corpus=corpus)
                if found:
                    paper = paper_figures(table, row)
                    values = {name: results.seeds_mean(name, table=table, row=row, corpus=corpus) for name in columns}
                    cells = ["" if value is None else f"{value:.2f}" for value in values.values()]
                    cells = [f"{c} ({paper[n]:.2f})" if n in paper else c for c, n in zip(cells, values)]
                    title = f"{table} {row}" + (f" [{len(found)} seeds]" if len(found) > 1 else "")
                    lines.append(f"{title:46}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def draw_figures(results: Results, folder: Path) -> None:
    """Table 4 as bars with whiskers over seeds, one picture per corpus; Table 5 as curves of the mean UED."""
    curves = {}
    for corpus in dict.fromkeys(run.corpus for run in results.runs):
        bars, spread = {}, {}
        for row in (*TABLES["table4"], *TABLES["control"]):
            runs = results.find(row=row, corpus=corpus, table="table4") or results.find(row=row, corpus=corpus)
            found = [run.metrics for run in runs]
            for name, title in CONDITIONS.items():
                values = [metrics[f"ued/{name}"] for metrics in found if f"ued/{name}" in metrics]
                if values:
                    bars.setdefault(row, {})[title] = sum(values) / len(values)
                    spread.setdefault(row, {})[title] = (min(values), max(values))
        if bars:
            plot_unit_edit_distance(bars, folder / f"{METHOD}_table4_{corpus}.png", f"Table 4 on {corpus}", spread)
        rows = {int(row[2:]): dict(table="table5", row=row, corpus=corpus) for row in TABLES["table5"]}
        means = {voters: results.seeds_mean("ued_mean", **wanted) for voters, wanted in rows.items()}
        curves[corpus] = {voters: mean for voters, mean in means.items() if mean is not None}
    curves = {corpus: points for corpus, points in curves.items() if points}
    if curves:
        curves["paper (FLEURS)"] = {n: paper_figures("table5", f"N={n}")["ued_mean"] for n in (3, 5, 7)}
        plot_voter_counts(curves, folder / f"{METHOD}_table5.png", "Number of voters")


def main() -> None:
    args, training_flags = parse_arguments()
    jobs = [("base", (("base", "mini Whisper"),), 0, None)]
    by_seed = sorted({(seed, index) for index, row in enumerate(ROWS) for seed in row.seeds if row.name in args.rows})
    for seed, index in by_seed:  # first every row once, then the further seeds
        if args.seeds is None or seed in args.seeds:
            row = ROWS[index]
            jobs.append((row.name, row.entries, seed, training_command(args, row, seed, training_flags)))
    failures = []
    with ThreadPoolExecutor(args.jobs) as pool:
        for job, future in [(job, pool.submit(run, args, *job)) for job in jobs]:
            try:
                future.result()
            except RuntimeError as error:
                failures.append(f"{job[0]}, seed {job[2]}: {error}")
                print(failures[-1], file=sys.stderr, flush=True)
    results = read_results(args.results, METHOD)
    draw_figures(results, args.figures)
    print(format_tables(results))
    if failures:
        sys.exit(f"{len(failures)} of {len(jobs)} models failed; the same command goes on where they stopped.")


if __name__ == "__main__":
    main()
