"""The tables of FactoredASR's results: their rows, the paper's figures, intervals and goals."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

from table_runs import CLEAN, Goal, format_goals, format_table

from clearspeech.trainers.bootstrap import Estimate
from clearspeech.trainers.metrics import relative_error_reduction
from clearspeech.trainers.results import Results, Run

METHOD = "factored_asr"
MIXING_RATES = (CLEAN, "0.1", "0.25", "0.3")
LOUDEST = MIXING_RATES[-1]
ENCODERS = {"RNN-T": "lstm", "Conformer": "conformer"}  # in the paper's words
FACTORS = {  # of Table 1's columns, and the flags that leave them out
    "FR": ("--factorize", "False", "--mi_weight", "0"),
    "BG-C": ("--contrast_weight", "0"),
    "MLM": ("--mask_probability", "0"),
}
BASELINE, FULL = "Baseline", " + ".join(FACTORS)
COMBINATIONS = (BASELINE, *[" + ".join(names) for size in (1, 2, 3) for names in combinations(FACTORS, size)])
PROBES = ("speaker", "noise", "characters_cer")
REPRESENTATIONS = ("content", "context", "states", "unfactored")
DIFFERENCE, CHANCE = "context - content", "chance"


def row_name(encoder: str, factors: str) -> str:
    """`RNN-T, FR + MLM`."""
    return f"{encoder}, {factors}"


def comparison_row(encoder: str, factors: str) -> str:
    """Table 3's name of a row."""
    return encoder if factors == BASELINE else f"{encoder} (Ours)"


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
    baseline of the same seed; Table 3's rows as one run per seed and corpus, their conditions in the names of the
    figures.
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
        place = dict(table="table1", row=row_name(encoder, BASELINE), corpus=run.corpus, seed=run.seed)
        baseline = results.seeds_mean("wer", **place)
        if run.table == "table1" and factors != BASELINE and baseline:
            run = replace(run, metrics=run.metrics | {"rer": relative_error_reduction(run.metrics["wer"], baseline)})
        runs.append(run)
    return replace(results, runs=[*runs, *whole.values()])


def goals(results: Results) -> Iterator[Goal]:
    """What the full model was to reach, as far as it is measured, of the seeds that it shares with the baseline."""
    for corpus in dict.fromkeys(run.corpus for run in results.runs):
        for encoder in ENCODERS:
            full = dict(row=row_name(encoder, FULL), corpus=corpus)
            for rate, speech in ((CLEAN, "clean speech"), (LOUDEST, f"alpha {LOUDEST}")):
                for run in results.find(table="bootstrap", condition=rate, **full):
                    text = f"{encoder}: change of the WER on {speech}, in %{openness(run)}"
                    yield Goal(text, corpus, run.metrics["change"], "<", 0.0)
            for run in results.find(table="bootstrap_growth", **full):
                text = f"{encoder}: growth of the gain to alpha {LOUDEST}, in points{openness(run)}"
                yield Goal(text, corpus, run.metrics["change"], ">", 0.0)
            for name in PROBES:
                row = dict(table="probe", row=row_name(encoder, DIFFERENCE), corpus=corpus)
                low = results.seeds_mean(f"{name}_low", **row)
                if low is not None:
                    text = f"{encoder}: lower end of {name} of context above that of content, in points"
                    yield Goal(text, corpus, low, ">", 0.0)


def openness(run: Run) -> str:
    """What is to be said of a figure whose interval covers zero."""
    return " (its interval covers zero)" if comparison_of(run).covers_zero else ""


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
    lines += ["", "WER against that of the baseline of the same seeds, 95 % interval:"]
    lines += format_comparisons(results, "bootstrap", "%")
    lines += ["", f"The full model's relative gain at alpha {LOUDEST} minus that at alpha {CLEAN}, 95 % interval:"]
    lines += format_comparisons(results, "bootstrap_growth", "points")
    return "\n".join([*lines, "", *format_goals(goals(results))])
