"""
Train and measure every row of the SLD paper's Table 1 over two sources of units, on real speech, beside its figures.

    python recipes/reproduce_speech_lm.py --jobs 2
    python recipes/reproduce_speech_lm.py --rows "Loss Masking, k-means" "SLD, k-means" --seeds 0

The units are k-means of the mini Whisper's last layer, fitted first (`recipes/fit_speech_units.py`), and the ids of
the kept mini StableToken. Rows differ from one another in the flags of `ROWS` and in their units only; all start from
random weights. Flags that this page does not know go to `recipes/train_speech_lm.py`. A row whose entries are in the
results file with the same command and units is skipped; an interrupted one goes on from its last checkpoint, whatever
stopped it. The first trainings of a source extract its units, and the others read them. Hardware: one CPU core per
job; 29 trainings.

* `table1`: Loss Masking, CE, Label Smoothing CE, KL Divergence, SLD; WER clean and under StableToken's Table 13.
* `figure2`: the weight alpha, and epsilon, temperature, normalization and positions of the divergence, over k-means
  and without noise.
* `figure3`: cross-entropy of dev text while these models train.
* `section4.2`: WER over the noise's SNR of both sources (StableToken's section 4.2 and Fig. 3).
* `emotion`: transcripts and emotions by prompt in one model; accuracy over the noise's SNR.

Writes `hub_cards/results/speech_lm.json` and the pictures; `recipes/write_card.py` then writes the card.
"""

import argparse
import fcntl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from table_runs import (
    Job,
    Row,
    add_shared_arguments,
    chosen_rows,
    exit_on_failures,
    fill_in_corpora,
    folder_name,
    is_trained,
    labels_of,
    recorded,
    run_all,
    train_once,
)
from tables_speech_lm import (
    ALPHA,
    COMPARED,
    KMEANS,
    LOSSES,
    METHOD,
    SNR_KINDS,
    SOURCES,
    STABLE_TOKEN,
    SWEEP,
    draw_figures,
    format_tables,
)

from clearspeech.trainers.results import Run, read_results, update_results
from clearspeech.trainers.speech_lm_figures import read_learning_curve

SNRS_DB = (20, 15, 10, 5, 0)
MAX_STEPS = 2000
ALL_SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class UnitRow(Row):
    """
    source: of its units. task: "asr", or "emotion" for both tasks by prompt. noisy: whether it is measured under
    noise, too; curve: whether the SNR is varied.
    """

    source: str = KMEANS
    task: str = "asr"
    noisy: bool = True
    curve: bool = False


def plan_rows() -> Iterator[UnitRow]:
    """All trainings, those first that the goals are about."""
    for loss in (*COMPARED, *[name for name in LOSSES if name not in COMPARED]):
        for source in SOURCES:
            name, is_sld = f"{loss}, {source}", loss == "SLD"
            entries = [("table1", name)]
            entries += [("section4.2", source)] if is_sld else []
            entries += [("figure2", f"alpha={ALPHA:g}")] if is_sld and source == KMEANS else []
            seeds = ALL_SEEDS if loss in COMPARED else (0,)
            yield UnitRow(name, ("--speech_loss", LOSSES[loss]), seeds, tuple(entries), source, curve=is_sld)
    for source in SOURCES:
        flags = ("--speech_loss", "sld", "--task_weights", "1", "1")
        yield UnitRow(f"emotion, {source}", flags, (0,), (("emotion", source),), source, "emotion", curve=True)
    for name, flags in SWEEP.items():
        if name != f"alpha={ALPHA:g}":
            yield UnitRow(name, ("--speech_loss", "sld", *flags), (0,), (("figure2", name),), noisy=False)


ROWS = tuple(plan_rows())


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """Our arguments, and the ones for training."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_shared_arguments(parser, METHOD, ROWS, "hub_cards/mini/whisper")
    parser.add_argument("--stable_token", default="hub_cards/mini/stable_token", help="the mini StableToken")
    parser.add_argument("--dataset", nargs="+", help="training corpora instead of digit strings and an4")
    parser.add_argument("--emotion_dataset", nargs="+", help="corpora with emotions instead of ravdess")
    args, training_flags = parser.parse_known_args()
    args.dataset = args.dataset or [f"digit_strings:{args.data}/spoken_digits:2000", f"{args.data}/an4"]
    args.emotion_dataset = args.emotion_dataset or [f"{args.data}/ravdess"]
    fill_in_corpora(args)
    if "--max_steps" not in training_flags:
        training_flags += ["--max_steps", str(MAX_STEPS)]
    return args, training_flags


def units_folder(args: argparse.Namespace, source: str) -> str:
    """Where a source of units lies."""
    return args.stable_token if source == STABLE_TOKEN else str(args.runs / "kmeans_units")


def fit_command(args: argparse.Namespace) -> list[str]:
    """What makes the units of k-means, without their folder."""
    command = ["python", "recipes/fit_speech_units.py", "--preset", "mini", "--encoder", args.base_model]
    return command + ["--dataset", *args.dataset]


def fit_units(args: argparse.Namespace, jobs: list[Job]) -> None:
    """
    Fit k-means, unless that is done or no job needs it.

    Raises:
        RuntimeError: the folder holds other units, or fitting failed.
    """
    folder, command = Path(units_folder(args, KMEANS)), fit_command(args)
    if any(job.base == str(folder) for job in jobs):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            train_once(command, recorded(command, args.base_model), folder, lock, going_on=())  # by itself


def training_command(args: argparse.Namespace, row: UnitRow, seed: int, training_flags: list[str]) -> list[str]:
    """What is recorded: everything but where the weights and the extracted units go."""
    command = ["python", "recipes/train_speech_lm.py", "--preset", "mini", "--units", units_folder(args, row.source)]
    command += ["--dataset", *args.dataset, "--seed", str(seed)]
    command += ["--emotion_dataset", *args.emotion_dataset] if row.task == "emotion" else []
    return command + list(row.flags) + training_flags


def plan_jobs(args: argparse.Namespace, training_flags: list[str]) -> list[Job]:
    """The chosen rows: test speech or emotions, clean and under noise, and the transcripts of clean dev speech."""
    measuring = ["python", "recipes/evaluate_speech_lm.py", "--device", "cpu"]
    validation = [*measuring, "--task", "asr", "--split", "validation", "--dataset", *args.test_dataset]
    jobs = []
    for row, seed in chosen_rows(ROWS, args.rows, args.seeds):
        test = args.test_dataset if row.task == "asr" else args.emotion_dataset
        evaluation = [*measuring, "--task", row.task, "--dataset", *test]
        if row.noisy:
            evaluation += ["--noise_dataset", *args.noise_dataset, "--conditions", "table13"]
        if row.curve:
            evaluation += ["--snr_curve", *SNR_KINDS, "--snrs_db", *map(str, SNRS_DB)]
        jobs.append(
            Job(
                row.name,
                row.entries,
                seed,
                training_command(args, row, seed, training_flags),
                evaluation,
                labels_of(dict.fromkeys([*test, *args.test_dataset])),
                unrecorded=("--unit_cache", str(args.runs / "unit_cache" / row.source)),
                validation=validation,
                base=units_folder(args, row.source),
            )
        )
    return jobs


def store_learning_curves(args: argparse.Namespace) -> None:
    """Fig. 3's points of Table 1's models that are in `--runs`, from their trainers' logs, as `text_ce@<step>`."""
    results, curves = read_results(args.results, METHOD), []
    for row, seed in [(each, seed) for each in ROWS if each.entries[0][0] == "table1" for seed in each.seeds]:
        folder = args.runs / folder_name(row.name, seed)
        shown = results.find(table="table1", row=row.name, seed=seed)
        if shown and is_trained(folder):
            points = {f"text_ce@{step}": value for step, value in read_learning_curve(folder, "eval_text").items()}
            corpus, fields = " and ".join(labels_of(args.dataset)), (shown[0].parameters, shown[0].command)
            curves.append(Run("figure3", row.name, seed, corpus, "validation", *fields, points))
    if curves:
        update_results(args.results, METHOD, curves)


def main() -> None:
    args, training_flags = parse_arguments()
    jobs = plan_jobs(args, training_flags)
    fit_units(args, jobs)
    failures = run_all(jobs, args, METHOD)
    store_learning_curves(args)
    results = read_results(args.results, METHOD)
    draw_figures(results, args.figures)
    print(format_tables(results))
    exit_on_failures(failures, jobs)


if __name__ == "__main__":
    main()
