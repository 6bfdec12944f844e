"""
Train and measure every row of the paper's Tables 1 and 3, for both encoders, on real speech, beside its figures.

    python recipes/reproduce_factored_asr.py --jobs 2
    python recipes/reproduce_factored_asr.py --rows "RNN-T, Baseline" "RNN-T, FR + BG-C + MLM" --seeds 0

Rows differ from one another in their encoder and in the flags of `FACTORS` only, and start from random weights. Flags
that this page does not know go to `recipes/train_factored_asr.py`. A row whose entries are in the results file with
the same command is skipped; an interrupted one goes on from its last checkpoint, whatever stopped it. Hardware: one
CPU core per job; 24 trainings of about 10 minutes (RNN-T) and 15 (Conformer).

* `table1`: the eight combinations of factors (FR), background contrast (BG-C) and frame masking (MLM), seven of which
  the paper prints; three seeds for the baseline and for all three, one for the others.
* `table3`: the baseline and all three with a second utterance mixed in, one entry for each rate (`condition`).
* `bootstrap`: the relative change of each row's WER from the baseline's of the same seeds, with its 95 % interval over
  utterances, for these two at each rate; and by how many points their relative gain at the highest rate exceeds that
  without mixing (`bootstrap_growth`).
* `probe`: what linear probes read from the factors of the first seed's model (`recipes/probe_factored_asr.py`).

The last two need the models' folders, and are taken where `--runs` has them. Writes
`hub_cards/results/factored_asr.json` and the probes' pictures; `recipes/write_card.py` then writes the card.
"""

import argparse
import fcntl
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from table_runs import (
    CLEAN,
    Job,
    Row,
    add_shared_arguments,
    chosen_rows,
    exit_on_failures,
    fill_in_corpora,
    folder_name,
    is_trained,
    labels_of,
    run_all,
    run_logged,
)
from tables_factored_asr import (
    BASELINE,
    CHANCE,
    COMBINATIONS,
    DIFFERENCE,
    ENCODERS,
    FACTORS,
    FULL,
    LOUDEST,
    METHOD,
    MIXING_RATES,
    PROBES,
    comparison_row,
    format_tables,
    row_name,
)

from clearspeech.processing.corpora import parse_source
from clearspeech.trainers.bootstrap import Estimate, WordErrors, bootstrap_growth, paired_bootstrap
from clearspeech.trainers.results import Results, Run, read_results, update_results, write_atomically

# for the probe: noises that sound through most of a clip, and of which the test split has five recordings or more
PROBE_NOISES = (
    "rain airplane wind crackling_fire church_bells engine vacuum_cleaner crickets toilet_flush clock_alarm".split()
)
MAX_STEPS = {"RNN-T": 6000, "Conformer": 4000}  # about as long: rows are compared within one encoder
ALL_SEEDS = (0, 1, 2)


def plan_row(encoder: str, factors: str) -> Row:
    """The training of one row of Table 1, and of Table 3's rows that show it."""
    left_out = [flag for name, flags in FACTORS.items() if name not in factors.split(" + ") for flag in flags]
    entries = [("table1", row_name(encoder, factors))]
    if factors in (BASELINE, FULL):
        entries += [("table3", comparison_row(encoder, factors), rate) for rate in MIXING_RATES]
    seeds = ALL_SEEDS if factors in (BASELINE, FULL) else (0,)
    flags = ("--encoder", ENCODERS[encoder], *left_out, "--max_steps", str(MAX_STEPS[encoder]))
    return Row(row_name(encoder, factors), flags, seeds, tuple(entries))


# those first that the goals are about
ROWS = tuple(
    plan_row(encoder, factors)
    for of_goals in (True, False)
    for encoder in ENCODERS
    for factors in COMBINATIONS
    if (factors in (BASELINE, FULL)) == of_goals
)


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """Our arguments, and the ones for training."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_shared_arguments(parser, METHOD, ROWS, None)
    parser.add_argument("--dataset", nargs="+", help="training corpora instead of digit strings and an4")
    args, training_flags = parser.parse_known_args()
    args.dataset = args.dataset or [f"digit_strings:{args.data}/spoken_digits:2000", f"{args.data}/an4"]
    fill_in_corpora(args)
    return args, training_flags


def plan_jobs(args: argparse.Namespace, training_flags: list[str]) -> list[Job]:
    """The chosen rows, each measured at all mixing rates."""
    training = ["python", "recipes/train_factored_asr.py", "--preset", "mini", "--dataset", *args.dataset]
    evaluation = ["python", "recipes/evaluate_factored_asr.py", "--device", "cpu", "--dataset", *args.test_dataset]
    evaluation += ["--mixing_rates", *MIXING_RATES]
    jobs = []
    for row, seed in chosen_rows(ROWS, args.rows, args.seeds):
        command = [*training, "--seed", str(seed), *row.flags, *training_flags]
        jobs.append(Job(row.name, row.entries, seed, command, evaluation, labels_of(args.test_dataset)))
    return jobs


ErrorsBySeed = dict[int, WordErrors]


def read_word_errors(args: argparse.Namespace, results: Results, name: str) -> dict[tuple[str, str], ErrorsBySeed]:
    """By corpus and mixing rate, the word errors of each training of a row that is in the results and in `--runs`."""
    errors: dict[tuple[str, str], ErrorsBySeed] = {}
    for run in results.find(table="table1", row=name):
        path = args.runs / folder_name(name, run.seed) / "evaluation_utterances.json"
        if path.exists():
            for rate, parts in json.loads(path.read_text())[run.corpus].items():
                errors.setdefault((run.corpus, rate), {})[run.seed] = WordErrors(**parts)
    return errors


def pair_trainings(*rows: ErrorsBySeed) -> list[list[WordErrors]]:
    """Of each row the trainings whose seeds all rows have, in one order."""
    seeds = sorted(set.intersection(*map(set, rows)))
    return [[row[seed] for seed in seeds] for row in rows]


def compare_trainings(args: argparse.Namespace, results: Results) -> Iterator[tuple[str, str, str, str, list]]:
    """
    What is compared: table, row, corpus, mixing rate, and the word errors by seed of the baseline and the row, for a
    growth those without mixing first. Every row without mixing, the full model at each rate.
    """
    for encoder in ENCODERS:
        baseline = read_word_errors(args, results, row_name(encoder, BASELINE))
        for name in (row_name(encoder, factors) for factors in COMBINATIONS if factors != BASELINE):
            row = read_word_errors(args, results, name)
            places = [place for place in row if place in baseline and (name.endswith(FULL) or place[1] == CLEAN)]
            for corpus, rate in places:
                yield "bootstrap", name, corpus, rate, [each[corpus, rate] for each in (baseline, row)]
            for corpus, rate in places:
                if rate == LOUDEST:
                    conditions = [each.get((corpus, mixed), {}) for mixed in (CLEAN, rate) for each in (baseline, row)]
                    yield "bootstrap_growth", name, corpus, rate, conditions


def store_comparisons(args: argparse.Namespace) -> list[str]:
    """
    Each row against the baseline, where `--runs` holds both, by the seeds that both have: `bootstrap`; and the full
    model's gain at the loudest rate against that on clean speech: `bootstrap_growth`. All seeds are in one. Returns
    what could not be compared, and why.
    """
    results, compared, failures = read_results(args.results, METHOD), [], []
    for table, name, corpus, rate, conditions in compare_trainings(args, results):
        try:
            pairs = pair_trainings(*conditions)
            found = paired_bootstrap(*pairs) if table == "bootstrap" else bootstrap_growth(pairs[:2], pairs[2:])
        except ValueError as error:
            failures.append(f"{table} of {name} on {corpus}, alpha {rate}: {error}")
            continue
        shown = results.find(table="table1", row=name)[0]
        fields = dict(corpus=corpus, split="test", parameters=shown.parameters, command=shown.command)
        metrics = as_metrics(found) | {"utterances": len(pairs[0][0].utterances), "trainings": len(pairs[0])}
        compared.append(Run(table, name, 0, **fields, metrics=metrics, condition=rate))
    if compared:
        update_results(args.results, METHOD, compared)
    return failures


def as_metrics(found: Estimate) -> dict[str, float]:
    """As `tables_factored_asr.comparison_of` reads it."""
    return {"change": found.value, "change_low": found.low, "change_high": found.high}


def store_probes(args: argparse.Namespace) -> list[str]:
    """
    Probe the first seed's full model of each encoder on each corpus, beside its baseline, where `--runs` holds both
    and the results do not have it yet. Digit strings share recordings, which would be on both sides of a probe: there,
    the single digits that they are made of. Returns what failed, and why.
    """
    sources, failures = [recordings_of(source) for source in args.test_dataset], []
    for encoder in ENCODERS:
        folders = [args.runs / folder_name(row_name(encoder, factors), 0) for factors in (FULL, BASELINE)]
        shown = read_results(args.results, METHOD).find(table="table1", row=row_name(encoder, FULL), seed=0)
        for source, label in zip(sources, labels_of(sources)):
            of_corpus = dict(seed=0, corpus=label, split="test")
            wanted = dict(table="probe", row=row_name(encoder, CHANCE), command=shown[0].command) if shown else {}
            known = shown and read_results(args.results, METHOD).find(**wanted, **of_corpus)
            if not shown or known or not all(map(is_trained, folders)):
                continue
            try:
                found = probe(args, folders, source, args.figures / f"{METHOD}_probe_{ENCODERS[encoder]}_{label}.png")
            except RuntimeError as error:
                failures.append(f"probe of {encoder} on {label}: {error}")
                continue
            fields = dict(parameters=shown[0].parameters, command=shown[0].command) | of_corpus
            runs = [Run("probe", row_name(encoder, row), **fields, metrics=rates) for row, rates in found.items()]
            update_results(args.results, METHOD, runs)
    return failures


def recordings_of(source: str) -> str:
    """The corpus of single digits that digit strings are made of; any other as it is."""
    parsed = parse_source(source)
    return parsed.name if parsed.digit_strings else source


def probe(args: argparse.Namespace, folders: list[Path], source: str, picture: Path) -> dict[str, dict[str, float]]:
    """Rates of the full and the baseline model in `folders`, by representation; the picture goes where it is shown."""
    full, baseline = folders
    command = ["python", "recipes/probe_factored_asr.py", "--model", str(full), "--baseline", str(baseline)]
    command += ["--dataset", source, "--noise_dataset", *args.noise_dataset, "--noise_classes", *PROBE_NOISES]
    with (full / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run_logged([*command, "--device", "cpu", "--output_dir", str(full)], full / "probe.log", lock)
    write_atomically(picture, (full / "probe.png").read_bytes())
    return read_probes(json.loads((full / "probe.json").read_text()))


def read_probes(content: dict) -> dict[str, dict[str, float]]:
    """What `probe.json` says, by row: rates with `_low` and `_high` ends of their intervals."""
    rows: dict[str, dict[str, float]] = {}
    for name in PROBES:
        rates = {each: [rate, *content["intervals"][name][each]] for each, rate in content[name].items()}
        rates |= {DIFFERENCE: content["context_minus_content"][name], CHANCE: [content["chance"][name]]}
        for row, values in rates.items():
            rows.setdefault(row, {}).update(zip((name, f"{name}_low", f"{name}_high"), values))
    for row, width in content["widths"].items():
        rows[row]["width"] = width
    return rows


def main() -> None:
    args, training_flags = parse_arguments()
    jobs = plan_jobs(args, training_flags)
    failures = run_all(jobs, args, METHOD)
    not_shown = store_comparisons(args) + store_probes(args)
    print(format_tables(read_results(args.results, METHOD)))
    for failure in not_shown:
        print(failure, file=sys.stderr)
    exit_on_failures(failures, jobs)
    if not_shown:
        sys.exit(f"{len(not_shown)} comparisons and probes are missing above.")


if __name__ == "__main__":
    main()
