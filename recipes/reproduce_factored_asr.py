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
* `bootstrap`: the relative change of the WER between these two, with its 95 % interval over utterances, and by how
  many points the relative gain at the highest mixing rate exceeds that without mixing (`bootstrap_growth`).
* `probe`: what linear probes read from the factors of the first seed's model (`recipes/probe_factored_asr.py`).

The last two need the models' folders, and are taken where `--runs` has them. Writes
`hub_cards/results/factored_asr.json` and the probes' pictures; `recipes/write_card.py` then writes the card.
"""

import argparse
import fcntl
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from table_runs import (
    CLEAN,
    Goal,
    Job,
    Row,
    add_shared_arguments,
    chosen_rows,
    exit_on_failures,
    fill_in_corpora,
    folder_name,
    format_goals,
    format_table,
    is_trained,
    labels_of,
    named,
    run_all,
    run_logged,
)

from clearspeech.trainers.bootstrap import Estimate, WordErrors, bootstrap_growth, paired_bootstrap
from clearspeech.trainers.metrics import relative_error_reduction
from clearspeech.trainers.results import Results, Run, read_results, update_results, write_atomically

METHOD = "factored_asr"
MIXING_RATES = (CLEAN, "0.1", "0.25", "0.3")
LOUDEST = MIXING_RATES[-1]
ENCODERS = {"RNN-T": "lstm", "Conformer": "conformer"}  # in the paper's words
MAX_STEPS = {"RNN-T": 6000, "Conformer": 4000}  # about as long: rows are compared within one encoder
FACTORS = {  # of Table 1's columns, and the flags that leave them out
    "FR": ("--factorize", "False", "--mi_weight", "0"),
    "BG-C": ("--contrast_weight", "0"),
    "MLM": ("--mask_probability", "0"),
}
BASELINE, FULL = "Baseline", " + ".join(FACTORS)
COMBINATIONS = (BASELINE, *[" + ".join(names) for size in (1, 2, 3) for names in combinations(FACTORS, size)])
ALL_SEEDS = (0, 1, 2)
# for the probe: noises that sound through most of a clip, and of which the test split has five recordings or more
PROBE_NOISES = (
    "rain airplane wind crackling_fire church_bells engine vacuum_cleaner crickets toilet_flush clock_alarm".split()
)
PROBES = ("speaker", "noise", "characters_cer")
REPRESENTATIONS = ("content", "context", "states", "unfactored")
DIFFERENCE, CHANCE = "context - content", "chance"


def row_name(encoder: str, factors: str) -> str:
    """`RNN-T, FR + MLM`."""
    return f"{encoder}, {factors}"


def plan_row(encoder: str, factors: str) -> Row:
    """The training of one row of Table 1, and of Table 3's rows that show it."""
    left_out = [flag for name, flags in FACTORS.items() if name not in factors.split(" + ") for flag in flags]
    entries = [("table1", row_name(encoder, factors))]
    if factors in (BASELINE, FULL):
        entries += [("table3", comparison_row(encoder, factors), rate) for rate in MIXING_RATES]
    seeds = ALL_SEEDS if factors in (BASELINE, FULL) else (0,)
    flags = ("--encoder", ENCODERS[encoder], *left_out, "--max_steps", str(MAX_STEPS[encoder]))
    return Row(row_name(encoder, factors), flags, seeds, tuple(entries))


def comparison_row(encoder: str, factors: str) -> str:
    """Table 3's name of a row."""
    return encoder if factors == BASELINE else f"{encoder} (Ours)"


# those first that the goals are about
ROWS = tuple(
    plan_row(encoder, factors)
    for of_goals in (True, False)
    for encoder in ENCODERS
    for factors in COMBINATIONS
    if (factors in (BASELINE, FULL)) == of_goals
)
TABLES = {
    "table1": tuple(row_name(encoder, factors) for encoder in ENCODERS for factors in COMBINATIONS),
    "table3": tuple(comparison_row(encoder, factors) for encoder in ENCODERS for factors in (BASELINE, FULL)),
}
# LibriSpeech's test-clean and test-other. The text layer of Table 1 has lost the columns of its crosses; the singles
# are told by the paper's section 3 (BG-C is "worse", "only MLM improves"), and its two pairs are those with FR, taken
# here in the order of the columns. BG-C + MLM is not printed.
PAPER_TABLE1 = {
    "RNN-T": {
        BASELINE: (6.05, 15.43),
        "FR": (6.06, 15.42),
        "BG-C": (6.08, 15.46),
        "MLM": (5.98, 15.07),
        "FR + BG-C": (5.91, 15.01),
        "FR + MLM": (5.87, 14.84),
        FULL: (5.80, 14.61),
    },
    "Conformer": {
        BASELINE: (2.13, 4.31),
        "FR": (2.12, 4.28),
        "BG-C": (2.14, 4.30),
        "MLM": (2.10, 4.26),
        "FR + BG-C": (2.11, 4.20),
        "FR + MLM": (2.09, 4.16),
        FULL: (2.07, 4.10),
    },
}
PAPER_TABLE3 = {  # by mixing rate
    "RNN-T": ((6.05, 15.43), (6.19, 15.88), (7.58, 20.01), (8.65, 21.88)),
    "RNN-T (Ours)": ((5.80, 14.61), (5.82, 15.13), (7.25, 18.99), (8.21, 20.41)),
    "Conformer": ((2.13, 4.31), (2.21, 4.53), (2.67, 5.60), (2.79, 6.72)),
    "Conformer (Ours)": ((2.07, 4.10), (2.12, 4.29), (2.54, 5.32), (2.56, 5.86)),
}
COLUMNS = {"wer": "WER", "rer": "RER", "cer": "CER"}
COLUMNS |= {f"wer/{rate}": f"WER, alpha {rate}" for rate in MIXING_RATES if rate != CLEAN}


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


def store_comparisons(args: argparse.Namespace) -> list[str]:
    """
    The full model against the baseline at each rate, where `--runs` holds both, by the seeds that both have:
    `bootstrap`; and its gain at the loudest rate against that on clean speech: `bootstrap_growth`. All seeds are in
    one. Returns what could not be compared, and why.
    """
    results, compared, failures = read_results(args.results, METHOD), [], []
    for encoder in ENCODERS:
        baseline, full = (read_word_errors(args, results, row_name(encoder, each)) for each in (BASELINE, FULL))
        shown = results.find(table="table1", row=row_name(encoder, FULL))
        places = [place for place in full if place in baseline]
        asked = [("bootstrap", *place) for place in places]
        asked += [("bootstrap_growth", corpus, rate) for corpus, rate in places if rate == LOUDEST]
        for table, corpus, rate in asked:
            rates = [rate] if table == "bootstrap" else [CLEAN, rate]
            try:
                pairs = pair_trainings(*(row.get((corpus, each), {}) for each in rates for row in (baseline, full)))
                found = paired_bootstrap(*pairs) if len(rates) == 1 else bootstrap_growth(pairs[:2], pairs[2:])
            except ValueError as error:
                failures.append(f"{table} of {encoder} on {corpus}, alpha {rate}: {error}")
                continue
            metrics = {
                "change": found.value,
                "change_low": found.low,
                "change_high": found.high,
                "utterances": len(pairs[0][0].utterances),
                "trainings": len(pairs[0]),
            }
            fields = dict(corpus=corpus, split="test", parameters=shown[0].parameters, command=shown[0].command)
            compared.append(Run(table, comparison_row(encoder, FULL), 0, **fields, metrics=metrics, condition=rate))
    if compared:
        update_results(args.results, METHOD, compared)
    return failures


def store_probes(args: argparse.Namespace) -> list[str]:
    """
    Probe the first seed's full model of each encoder on each corpus, beside its baseline, where `--runs` holds both
    and the results do not have it yet. Returns what failed, and why.
    """
    failures = []
    for encoder in ENCODERS:
        folders = [args.runs / folder_name(row_name(encoder, factors), 0) for factors in (FULL, BASELINE)]
        shown = read_results(args.results, METHOD).find(table="table1", row=row_name(encoder, FULL), seed=0)
        for source, label in zip(args.test_dataset, labels_of(args.test_dataset)):
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
    return rows


def paper_figures(table: str, row: str) -> dict[str, float]:
    """The paper's figures for a row under our metric names, on test-clean; empty where it prints none."""
    if table == "table3":
        wers = dict(zip(MIXING_RATES, PAPER_TABLE3[row]))
        return {"wer" if rate == CLEAN else f"wer/{rate}": clean for rate, (clean, _) in wers.items()}
    encoder, _, factors = row.partition(", ")
    if factors not in PAPER_TABLE1[encoder]:
        return {}
    wer, baseline = PAPER_TABLE1[encoder][factors][0], PAPER_TABLE1[encoder][BASELINE][0]
    return {"wer": wer} | ({} if factors == BASELINE else {"rer": relative_error_reduction(wer, baseline)})


def with_comparison(results: Results) -> Results:
    """
    The results as tables show them: Table 1's rows with `rer`, the relative error reduction against the encoder's
    baseline; Table 3's rows as one run per seed and corpus, their conditions in the names of the figures.
    """
    runs, whole = [], {}
    for run in results.runs:
        if run.table == "table3":
            suffix, place = "" if run.condition == CLEAN else f"/{run.condition}", (run.row, run.seed, run.corpus)
            known = whole[place].metrics if place in whole else {}
            figures = {f"{name}{suffix}": value for name, value in run.metrics.items()}
            whole[place] = replace(run, metrics=known | figures, condition=None)
            continue
        encoder, _, factors = run.row.partition(", ")
        baseline = results.seeds_mean("wer", table="table1", row=row_name(encoder, BASELINE), corpus=run.corpus)
        if run.table == "table1" and factors != BASELINE and baseline:
            run = replace(run, metrics=run.metrics | {"rer": relative_error_reduction(run.metrics["wer"], baseline)})
        runs.append(run)
    return replace(results, runs=[*runs, *whole.values()])


def relative_gains(results: Results, encoder: str, corpus: str) -> dict[str, float]:
    """By mixing rate, how far the full model's WER lies below the baseline's, in percent of it; means over seeds."""
    gains = {}
    for rate in MIXING_RATES:
        baseline, full = (
            results.seeds_mean("wer", **named(("table3", comparison_row(encoder, factors), rate)), corpus=corpus)
            for factors in (BASELINE, FULL)
        )
        if baseline and full is not None:
            gains[rate] = relative_error_reduction(full, baseline)
    return gains


def goals(results: Results) -> Iterator[Goal]:
    """What the full model was to reach, as far as it is measured; means over seeds."""
    for corpus in dict.fromkeys(run.corpus for run in results.runs):
        for encoder in ENCODERS:
            gains = relative_gains(results, encoder, corpus)
            if CLEAN in gains:
                yield Goal(
                    f"{encoder}: relative gain of the full model on clean speech", corpus, gains[CLEAN], ">", 0.0
                )
            if CLEAN in gains and LOUDEST in gains:
                text = f"{encoder}: relative gain at alpha {LOUDEST}, that on clean speech"
                yield Goal(text, corpus, gains[LOUDEST], ">", gains[CLEAN])
            for name in PROBES:
                row = dict(table="probe", row=row_name(encoder, DIFFERENCE), corpus=corpus)
                low = results.seeds_mean(f"{name}_low", **row)
                if low is not None:
                    text = f"{encoder}: lower end of {name} of context above that of content, in points"
                    yield Goal(text, corpus, low, ">", 0.0)


def comparison_of(run: Run) -> Estimate:
    """What a run of `bootstrap` or `bootstrap_growth` says."""
    return Estimate(*(run.metrics[name] for name in ("change", "change_low", "change_high")))


def format_comparisons(results: Results, table: str, unit: str) -> list[str]:
    """Lines of text: the intervals of `bootstrap` or `bootstrap_growth`, and which of them cover zero."""
    lines = []
    for run in results.find(table=table):
        found = comparison_of(run)
        interval = f"{found.value:+.1f} {unit} ({found.low:+.1f} to {found.high:+.1f})"
        verdict = "  covers zero" if found.covers_zero else ""
        lines.append(f"{run.corpus}, {run.row}, alpha {run.condition}: {interval}{verdict}")
    return lines


def format_tables(results: Results) -> str:
    """Every table on every corpus, the intervals, and the goals."""
    shown, lines = with_comparison(results), []
    for corpus in dict.fromkeys(run.corpus for run in results.runs):
        lines += ["", f"{corpus}, test, in % (the paper's figure: LibriSpeech, test-clean)"]
        lines += format_table(shown, corpus, TABLES, COLUMNS, paper_figures)
    lines += ["", "WER of the full model against the baseline, 95 % interval:"]
    lines += format_comparisons(results, "bootstrap", "%")
    lines += ["", f"Its relative gain at alpha {LOUDEST} minus that at alpha {CLEAN}, 95 % interval:"]
    lines += format_comparisons(results, "bootstrap_growth", "points")
    return "\n".join([*lines, "", *format_goals(goals(results))])


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
