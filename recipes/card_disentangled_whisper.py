"""The generated sections of DisentangledWhisper's card."""

import math
from collections.abc import Callable

from card_tables import (
    NOTHING,
    benchmarks,
    cells,
    corpora_of,
    goal_table,
    markdown_table,
    option,
    preset_table,
    result_table,
)
from reproduce_disentangled_whisper import (
    CONTROL,
    NUM_BEAMS,
    OURS,
    TABLES,
    TRAINING_NOISES,
    goals,
    measured_columns,
    paper_figures,
    with_error_reduction,
)
from train_disentangled_whisper import PRESETS, RecipeArguments

from clearspeech.trainers.results import Results
from clearspeech.trainers.trainer_disentangled_whisper import DisentangledWhisperTrainingArguments

RANGED = (  # what the targets are about
    "wer",
    "noise_accuracy",
    "noise_accuracy_new_clips",
    "clean_unknown",
    "ued",
    "latent_distance",
    "latent_distance_relative",
)
HOUSEKEEPING = ("logging_steps", "save_steps", "save_total_limit", "per_device_eval_batch_size", "use_cpu")
RESIDUE_COLUMNS = {
    "clean_posterior_max": "clean: likeliest class in %",
    "clean_posterior_entropy": "clean: entropy in nats",
    "clean_unknown": "clean: `unknown` in %",
    "noisy_posterior_max": "noisy: likeliest class in %",
    "noisy_posterior_entropy": "noisy: entropy in nats",
    "noisy_unknown": "noisy: `unknown` in %",
}


def setting(results: Results) -> str:
    """Size, data, noises, steps and machine of the measured models."""
    found = results.find(table=OURS[0], row=OURS[1])
    if not found:
        return NOTHING
    run, machine = found[0], results.environment
    names = {name: ", ".join(f"`{value}`" for value in option(run, name)) for name in ("--dataset", "--noise_dataset")}
    classes = ", ".join(name.replace("_", " ") for name in option(run, "--noise_classes"))
    return (
        f"Ours: {run.parameters / 1e6:.2f} M parameters in all, {option(run, '--max_steps')[0]} steps, trained on "
        f"{names['--dataset']}, each utterance under {option(run, '--copies')[0]} noises from "
        f"{names['--noise_dataset']} ({classes}), beam size {NUM_BEAMS}; measured with torch {machine['torch']}, "
        f"transformers {machine['transformers']}, {machine['device']}. The paper's: Whisper medium, 28.5 hours of "
        "VoiceBank-DEMAND. The figures of the two are not comparable, their order is.\n\n"
        f"```\n{run.command}\n```\n"
    )


def preset() -> str:
    """What `--preset mini` sets and the model depends on, beside the value without it."""
    return preset_table(PRESETS, (RecipeArguments, DisentangledWhisperTrainingArguments), HOUSEKEEPING)


def tables(results: Results, name: str) -> str:
    """One table of the paper on each corpus with transcripts."""
    results = with_error_reduction(results)
    entries = [(name, row) for row in TABLES[name]]
    text = ""
    for corpus in transcribed(results, name):
        columns = measured_columns(results, corpus)
        text += f"`{corpus}`, test split, rates in percent:\n\n"
        text += result_table(results, corpus, entries, columns, RANGED, paper_figures) + "\n"
    return text or NOTHING


def transcribed(results: Results, *names: str) -> list[str]:
    """The corpora of some tables that have a WER."""
    measured = {run.corpus for run in results.runs if "wer" in run.metrics}
    return [corpus for corpus in corpora_of(results, names) if corpus in measured]


def real_pairs(results: Results) -> str:
    """Distances between clean and noisy speech, where pairs are real and no WER was measured."""
    entries = [OURS, CONTROL, *[("table2", row) for row in TABLES["table2"]]]
    text = ""
    for corpus in corpora_of(results, TABLES):
        if corpus not in transcribed(results, *TABLES):
            text += f"`{corpus}`, test split, UED and codes in use in percent:\n\n"
            columns = measured_columns(results, corpus)
            text += result_table(results, corpus, entries, columns, RANGED, paper_figures) + "\n"
    return text or NOTHING


def residue(results: Results) -> str:
    """What the noise head makes of the residue of clean and of noisy speech, in our main model."""
    table, row = OURS
    lines = []
    for corpus in corpora_of(results, (table,)):
        figures = cells(results, RESIDUE_COLUMNS, RANGED, table=table, row=row, corpus=corpus)
        if any(figures):
            lines.append([f"`{corpus}`", *figures])
    if not lines:
        return NOTHING
    classes = len(TRAINING_NOISES) + 1
    note = f"\nUniform over the {classes} classes would be {100 / classes:.2f} % and {math.log(classes):.2f} nats.\n"
    return markdown_table(["", *RESIDUE_COLUMNS.values()], lines) + note


def noise_classes(results: Results) -> str:
    """The noise head's accuracy by class, of our main model: in the noise recordings of training, and in others."""
    table, row = OURS
    lines = []
    for corpus in corpora_of(results, (table,)):
        for metric, clips in (("noise_accuracy", "clips of training"), ("noise_accuracy_new_clips", "new clips")):
            names = (metric, *[f"{metric}/{name}" for name in TRAINING_NOISES])
            figures = cells(results, names, RANGED, table=table, row=row, corpus=corpus)
            if any(figures):
                lines.append([f"`{corpus}`, {clips}", *figures])
    titles = ["", "all", *[name.replace("_", " ") for name in TRAINING_NOISES]]
    return markdown_table(titles, lines) if lines else NOTHING


def counts(results: Results) -> str:
    """Parameters of the paper's shape, all and those that are trained."""
    lines = [
        [entry["name"], f"{entry['parameters'] / 1e6:.3f}", f"{entry['trainable_parameters'] / 1e6:.3f}"]
        for entry in results.counts
    ]
    return markdown_table(["", "parameters in M", "trainable in M"], lines) if lines else NOTHING


def sections(results: Results) -> dict[str, Callable[[], str]]:
    """What the card can ask for, by name."""
    return {
        "setting": lambda: setting(results),
        "preset": preset,
        "goals": lambda: goal_table(goals(results)),
        "table1": lambda: tables(results, "table1"),
        "table2": lambda: tables(results, "table2"),
        "noise_classes": lambda: noise_classes(results),
        "residue": lambda: residue(results),
        "real_pairs": lambda: real_pairs(results),
        "counts": lambda: counts(results),
        "benchmarks": lambda: benchmarks(results),
    }
