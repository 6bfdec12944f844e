"""The generated sections of SpeechLM's card."""

from collections.abc import Callable

from card_tables import (
    NOTHING,
    benchmarks,
    goal_table,
    markdown_table,
    option,
    preset_table,
    result_table,
)
from tables_speech_lm import (
    COLUMNS,
    EMOTION_COLUMNS,
    LOSSES,
    PAPER,
    PAPER_COLUMNS,
    TABLES,
    goals,
    measured_columns,
    measured_corpora,
    paper_figures,
    snr_curves,
    with_comparison,
)
from train_speech_lm import PRESETS, RecipeArguments

from clearspeech.trainers.results import Results
from clearspeech.trainers.speech_lm_figures import CLEAN
from clearspeech.trainers.trainer_speech_lm import SpeechLMTrainingArguments

RANGED = ("wer", "validation/wer", "wer_noisy", "accuracy")
HOUSEKEEPING = ("logging_steps", "save_steps", "save_total_limit", "per_device_eval_batch_size", "use_cpu", "units")


def setting(results: Results) -> str:
    """Size, data, units, steps and machine of the measured models."""
    found = results.find(table="table1")
    if not found:
        return NOTHING
    run, machine = found[0], results.environment
    corpora = ", ".join(f"`{source}`" for source in option(run, "--dataset"))
    return (
        f"Ours: {run.parameters / 1e6:.2f} M parameters with the rows of *{run.row}*, from random weights, "
        f"{option(run, '--max_steps')[0]} steps, trained on {corpora}, greedy search; measured with torch "
        f"{machine['torch']}, transformers {machine['transformers']}, {machine['device']}. The paper's: GPT-2 medium, "
        "pretrained on text, 960 hours of LibriSpeech. The figures of the two are not comparable.\n\n"
        f"```\n{run.command}\n```\n"
    )


def preset() -> str:
    """What `--preset mini` sets and the model depends on, beside the value without it."""
    return preset_table(PRESETS, (RecipeArguments, SpeechLMTrainingArguments), HOUSEKEEPING)


def tables(results: Results, name: str, columns: dict[str, str]) -> str:
    """One table on each corpus that it was measured on."""
    results = with_comparison(results)
    text = ""
    for corpus in measured_corpora(results):
        measured = measured_columns(results, corpus, (name,), columns)
        if measured:
            entries = [(name, row) for row in TABLES[name]]
            text += f"`{corpus}`, test split, in percent:\n\n"
            text += result_table(results, corpus, entries, measured, RANGED, paper_figures) + "\n"
    return text or NOTHING


def paper_table() -> str:
    """The SLD paper's Table 1, its GPT-2 rows."""
    header = ["", *[f"{source}, {column}" for source in PAPER for column in PAPER_COLUMNS]]
    lines = [[loss, *[f"{wer:.2f}" for source in PAPER for wer in PAPER[source][loss]]] for loss in LOSSES]
    return markdown_table(header, lines)


def curves(results: Results) -> str:
    """WER over the SNR, one table per corpus, and how far apart the two sources are."""
    text = ""
    for corpus in measured_corpora(results):
        by_source = snr_curves(results, "section4.2", corpus, "wer")
        snrs = {snr for kinds in by_source.values() for points in kinds.values() for snr in points}
        if by_source:
            header = ["", *["clean" if snr == CLEAN else f"{snr:g} dB" for snr in sorted(snrs, reverse=True)]]
            lines = [
                [f"{source}, {kind}", *[f"{points[snr]:.2f}" if snr in points else "" for snr in sorted(snrs)[::-1]]]
                for source, kinds in by_source.items()
                for kind, points in kinds.items()
            ]
            text += f"`{corpus}`, test split, WER in percent:\n\n{markdown_table(header, lines)}\n"
    return text or NOTHING


def counts(results: Results) -> str:
    """Rows of the embedding and parameters of the full-size models."""
    lines = [
        [
            entry["name"],
            f"{entry['rows']}",
            f"{entry['parameters'] / 1e6:.3f}",
            f"{entry['trainable'] / 1e6:.3f}",
        ]
        for entry in results.counts
    ]
    return markdown_table(["", "rows", "parameters in M", "trained in M"], lines) if lines else NOTHING


def sections(results: Results) -> dict[str, Callable[[], str]]:
    """What the card can ask for, by name."""
    return {
        "setting": lambda: setting(results),
        "preset": preset,
        "goals": lambda: goal_table(goals(results)),
        "table1": lambda: tables(results, "table1", COLUMNS),
        "paper": paper_table,
        "figure2": lambda: tables(results, "figure2", COLUMNS),
        "snr": lambda: curves(results),
        "emotion": lambda: tables(results, "emotion", EMOTION_COLUMNS),
        "counts": lambda: counts(results),
        "benchmarks": lambda: benchmarks(results),
    }
