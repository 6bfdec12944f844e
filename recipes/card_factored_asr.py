"""The generated sections of FactoredASR's card."""

from collections.abc import Callable

from card_tables import NOTHING, benchmarks, corpora_of, goal_table, markdown_table, option, preset_table, result_table
from table_runs import CLEAN
from tables_factored_asr import (
    BASELINE,
    CHANCE,
    COLUMNS,
    DIFFERENCE,
    ENCODERS,
    FULL,
    LOUDEST,
    MIXING_RATES,
    PAPER_TABLE1,
    PAPER_TABLE3,
    PROBES,
    REPRESENTATIONS,
    TABLES,
    comparison_of,
    comparison_row,
    goals,
    paper_figures,
    row_name,
    with_comparison,
)
from train_factored_asr import MINI_ENCODERS, PRESETS, RecipeArguments

from clearspeech.trainers.metrics import relative_error_reduction
from clearspeech.trainers.results import Results
from clearspeech.trainers.trainer_factored_asr import FactoredASRTrainingArguments

RANGED = ("wer", *[name for name in COLUMNS if name.startswith("wer/")])
HOUSEKEEPING = ("logging_steps", "save_steps", "save_total_limit", "per_device_eval_batch_size", "use_cpu")


def setting(results: Results) -> str:
    """Sizes, data, steps and machine of the measured models."""
    found = [
        results.find(table="table1", row=row_name(encoder, factors))
        for encoder in ENCODERS
        for factors in (BASELINE, FULL)
    ]
    shown = [runs[0] for runs in found if runs]
    if not shown:
        return NOTHING
    run, machine = shown[-1], results.environment
    sizes = ", ".join(
        f"{each.parameters / 1e6:.2f} M (*{each.row}*, {option(each, '--max_steps')[0]} steps)" for each in shown
    )
    corpora = ", ".join(f"`{source}`" for source in option(run, "--dataset"))
    return (
        f"Ours: {sizes} parameters, from random weights, trained on {corpora}, greedy search; measured with torch "
        f"{machine['torch']}, transformers {machine['transformers']}, {machine['device']}. The paper's: 66 M and 118 "
        "M parameters, 970 hours of LibriSpeech: the figures of the two are not comparable.\n\n"
        f"```\n{run.command}\n```\n"
    )


def preset() -> str:
    """What `--preset mini` sets and the model depends on, beside the value without it."""
    sizes = [
        f"`--encoder {encoder}` sets `{' '.join(f'--{name} {value}' for name, value in fields.items())}`"
        for encoder, fields in MINI_ENCODERS.items()
    ]
    table = preset_table(PRESETS, (RecipeArguments, FactoredASRTrainingArguments), HOUSEKEEPING)
    return f"{table}\nBesides, {' and '.join(sizes)}. `None` stands for the paper's size.\n"


def table(results: Results, name: str) -> str:
    """One table on each corpus that it was measured on."""
    shown, text = with_comparison(results), ""
    for corpus in corpora_of(results, (name,)):
        found = {metric for run in shown.find(table=name, corpus=corpus) for metric in run.metrics}
        columns = {metric: title for metric, title in COLUMNS.items() if metric in found}
        entries = [(name, row) for row in TABLES[name]]
        text += f"`{corpus}`, test split, in percent:\n\n"
        text += result_table(shown, corpus, entries, columns, RANGED, paper_figures) + "\n"
    return text or NOTHING


def comparisons(results: Results) -> str:
    """Each row against the baseline, and how the full model's gain grows: intervals, and what they leave open."""
    changes = comparison_table(results, "bootstrap", "change in %", ("better", "**worse**"))
    growths = comparison_table(
        results,
        "bootstrap_growth",
        f"gain at alpha {LOUDEST} minus that at alpha {CLEAN}, in points",
        ("**falls**", "grows"),
    )
    return "\n".join(filter(None, (changes, growths))) or NOTHING


def comparison_table(results: Results, table: str, title: str, verdicts: tuple[str, str]) -> str:
    """One table of intervals, "" without a run; verdicts: on an interval below zero, and on one above."""
    lines = []
    for run in results.find(table=table):
        found, paper, name = comparison_of(run), paper_change(run.row, run.condition), run.row
        if table == "bootstrap_growth":
            paper = paper_change(run.row, CLEAN) - paper
        elif run.condition != CLEAN:
            name += f", alpha {run.condition}"
        verdict = "covers zero: open" if found.covers_zero else verdicts[found.low > 0]
        figures = [
            f"{found.value:+.1f}",
            f"{found.low:+.1f} to {found.high:+.1f}",
            verdict,
            "" if paper is None else f"*{paper:+.1f}*",
        ]
        sizes = [f"{run.metrics[size]:.0f}" for size in ("utterances", "trainings")]
        lines.append([name, f"`{run.corpus}`", *figures, *sizes])
    header = ["", "corpus", title, "95 % interval", "", "the paper's", "utterances", "trainings of each"]
    return markdown_table(header, lines) if lines else ""


def paper_change(row: str, rate: str) -> float | None:
    """Relative change from the baseline on test-clean in percent, from the paper's WERs; None where it prints none."""
    encoder, _, factors = row.partition(", ")
    if factors == FULL:
        place = MIXING_RATES.index(rate)
        return -relative_error_reduction(
            *(PAPER_TABLE3[comparison_row(encoder, each)][place][0] for each in (FULL, BASELINE))
        )
    figures = paper_figures("table1", row)
    return -figures["rer"] if figures else None


def paper_tables() -> str:
    """Tables 1 and 3 as printed: WER on test-clean and test-other."""
    header = ["", *[f"{encoder}, {test}" for encoder in ENCODERS for test in ("test-clean", "test-other")]]
    printed = {factors: [PAPER_TABLE1[encoder][factors] for encoder in ENCODERS] for factors in PAPER_TABLE1["RNN-T"]}
    for place, rate in list(enumerate(MIXING_RATES))[1:]:  # rate 0 is Table 1
        for factors in (BASELINE, FULL):
            mixed = [PAPER_TABLE3[comparison_row(encoder, factors)][place] for encoder in ENCODERS]
            printed[f"{factors}, alpha {rate}"] = mixed
    lines = [[name, *[f"{wer:.2f}" for pair in pairs for wer in pair]] for name, pairs in printed.items()]
    return markdown_table(header, lines)


def probes(results: Results) -> str:
    """What can be read from each representation, with intervals, one table per corpus."""
    text = ""
    for corpus in corpora_of(results, ("probe",)):
        lines = []
        for row in (
            row_name(encoder, each) for encoder in ENCODERS for each in (*REPRESENTATIONS, DIFFERENCE, CHANCE)
        ):
            figures = [run.metrics for run in results.find(table="probe", row=row, corpus=corpus)]
            widths = [f"{each['width']:.0f}" if "width" in each else "" for each in figures]
            found = zip(widths, figures)
            lines += [[row, width, *[with_interval(each, name) for name in PROBES]] for width, each in found]
        header = [
            "",
            "values per frame",
            "speaker accuracy in %",
            "noise class accuracy in %",
            "CER of characters in %",
        ]
        text += f"`{corpus}`, test split:\n\n{markdown_table(header, lines)}\n"
    return text or NOTHING


def with_interval(metrics: dict[str, float], name: str) -> str:
    """A figure and the ends of its interval, where it has one."""
    if f"{name}_low" not in metrics:
        return f"{metrics[name]:.1f}"
    return f"{metrics[name]:.1f} ({metrics[f'{name}_low']:.1f} to {metrics[f'{name}_high']:.1f})"


def counts(results: Results) -> str:
    """Parameters of the full-size models, and the paper's figure."""
    lines = [
        [entry["name"], f"{entry['parameters'] / 1e6:.2f}", f"{entry['paper']:.0f}" if "paper" in entry else ""]
        for entry in results.counts
    ]
    return markdown_table(["", "parameters in M", "the paper's"], lines) if lines else NOTHING


def sections(results: Results) -> dict[str, Callable[[], str]]:
    """What the card can ask for, by name."""
    return {
        "setting": lambda: setting(results),
        "preset": preset,
        "goals": lambda: goal_table(goals(results)),
        "table1": lambda: table(results, "table1"),
        "table3": lambda: table(results, "table3"),
        "bootstrap": lambda: comparisons(results),
        "probes": lambda: probes(results),
        "paper": paper_tables,
        "counts": lambda: counts(results),
        "benchmarks": lambda: benchmarks(results),
    }
