"""The generated sections of StableToken's card."""

from collections.abc import Callable

from card_tables import NOTHING, benchmarks, corpora_of, markdown_table, option, result_table
from evaluate_stable_token import CONDITIONS
from reproduce_stable_token import TABLES, paper_figures

from clearspeech.trainers.results import Results

COLUMNS = {"wer": "WER clean", "wer/real": "WER real noise", "ued_mean": "UED mean"}
COLUMNS |= {f"ued/{name}": title for name, title in CONDITIONS.items()}
RANGED = ("wer", "ued_mean")  # what the targets are about


def setting(results: Results) -> str:
    """Size, data, steps and machine of the measured models."""
    found = results.find(table="table4", row="full")
    if not found:
        return NOTHING
    run, machine = found[0], results.environment
    corpora = ", ".join(f"`{source}`" for source in option(run, "--dataset"))
    noise = ", ".join(f"`{source}`" for source in option(run, "--noise_dataset"))
    return (
        f"Ours: {run.parameters / 1e6:.2f} M parameters in all, {option(run, '--max_steps')[0]} steps, trained on "
        f"{corpora} with noise from {noise}; measured with torch {machine['torch']}, transformers "
        f"{machine['transformers']}, {machine['device']}. The paper's: Whisper large-v3, 150 000 hours, UED on "
        "FLEURS, WER on LibriSpeech test-clean. The figures of the two are not comparable, their order is.\n\n"
        f"```\n{run.command}\n```\n"
    )


def tables(results: Results, names: tuple[str, ...]) -> str:
    """One table per corpus."""
    entries = [(name, row) for name in names for row in TABLES[name]]
    text = ""
    for corpus in corpora_of(results, names):
        text += f"`{corpus}`, test split, in percent{base_sentence(results, corpus)}:\n\n"
        text += result_table(results, corpus, entries, COLUMNS, RANGED, paper_figures) + "\n"
    return text or NOTHING


def base_sentence(results: Results, corpus: str) -> str:
    wer = results.seeds_mean("wer", table="base", corpus=corpus)
    return "" if wer is None else f" (the base Whisper, without tokens: WER {wer:.2f})"


def comparison(results: Results) -> str:
    """The full model against the single branch, in one sentence per corpus."""
    text = ""
    for corpus in dict.fromkeys(run.corpus for run in results.runs):
        full = dict(table="table4", row="full", corpus=corpus)
        for single in (
            full | {"row": "w/o multi-branch"},
            dict(table="control", row=TABLES["control"][0], corpus=corpus),
        ):
            if results.find(**full) and results.find(**single):
                ratio = results.seeds_mean("ued_mean", **full) / results.seeds_mean("ued_mean", **single)
                points = results.seeds_mean("wer", **full) - results.seeds_mean("wer", **single)
                text += f"* `{corpus}`: mean UED of the full model {ratio:.2f} x that of *{single['row']}*, "
                text += f"WER {points:+.2f} points.\n"
    return text or NOTHING


def counts(results: Results) -> str:
    """Parameters and operations of the paper's shape against its Table 12."""
    header = ["", "parameters in M", "the paper's", "operations in G", "the paper's", "products of attention in G"]
    lines = [
        [
            entry["name"],
            f"{entry['parameters'] / 1e6:.3f}",
            f"*{entry['paper']:.3f}*",
            f"{entry['operations'] / 1e9:.3f}",
            f"*{entry['paper_operations_g']:.3f}*",
            f"{entry['attention_products'] / 1e9:.3f}",
        ]
        for entry in results.counts
    ]
    note = "\nThe paper's counter leaves out the two matrix products of attention; they come on top.\n"
    return markdown_table(header, lines) + note if lines else NOTHING


def sections(results: Results) -> dict[str, Callable[[], str]]:
    """What the card can ask for, by name."""
    return {
        "setting": lambda: setting(results),
        "table4": lambda: tables(results, ("table4", "control")),
        "comparison": lambda: comparison(results),
        "table5": lambda: tables(results, ("table5",)),
        "counts": lambda: counts(results),
        "benchmarks": lambda: benchmarks(results),
    }
