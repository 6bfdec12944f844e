"""
Write the tables of StableToken's card: `hub_cards/stable_token.md` from `hub_cards/results/stable_token.json`.

    python recipes/write_card.py

Runs anywhere in seconds. Only the lines between `<!-- generated: NAME -->` and `<!-- end -->` are replaced; all else
is written by hand. `--check` changes nothing and fails when the card is not up to date.
"""

import argparse
import re
import shlex
import sys
from pathlib import Path

from evaluate_stable_token import CONDITIONS
from reproduce_stable_token import CARDS, METHOD, TABLES, paper_figures

from clearspeech.trainers.results import Results, Run, read_results, write_atomically

SECTION = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
COLUMNS = {"wer": "WER clean", "wer/real": "WER real noise", "ued_mean": "UED mean"}
COLUMNS |= {f"ued/{name}": title for name, title in CONDITIONS.items()}
NOTHING = "Not measured yet.\n"


def markdown_table(header: list[str], lines: list[list[str]]) -> str:
    rows = [header, ["---"] + ["---:"] * (len(header) - 1), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def option(run: Run, name: str) -> list[str]:
    """The values of an option in the command of a run."""
    words = shlex.split(run.command, comments=True)
    values = []
    for word in words[words.index(name) + 1 :] if name in words else []:
        if word.startswith("--"):
            break
        values.append(word)
    return values


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


def cells(results: Results, table: str, row: str, corpus: str) -> list[str]:
    """Our figures for one row: the mean over seeds, and their range for the two that the targets are about."""
    texts = []
    for name in COLUMNS:
        found = results.find(table=table, row=row, corpus=corpus)
        values = [run.metrics[name] for run in found if name in run.metrics]
        text = f"{sum(values) / len(values):.2f}" if values else ""
        if len(values) > 1 and name in ("wer", "ued_mean"):
            text += f" ({min(values):.2f} to {max(values):.2f})"
        texts.append(text)
    return texts


def tables(results: Results, names: tuple[str, ...]) -> str:
    """One table per corpus; under each of our rows the paper's, marked as such."""
    text = ""
    for corpus in dict.fromkeys(run.corpus for run in results.runs if run.table in names):
        lines = []
        for table, row in ((name, row) for name in names for row in TABLES[name]):
            found = results.find(table=table, row=row, corpus=corpus)
            if found:
                seeds = f", {len(found)} seeds" if len(found) > 1 else ""
                lines.append([f"**{row}**{seeds}", *cells(results, table, row, corpus)])
            paper = paper_figures(table, row)
            if found and paper:
                values = [f"*{paper[name]:.2f}*" if name in paper else "" for name in COLUMNS]
                lines.append([f"*{row}: the paper's*", *values])
        text += f"`{corpus}`, test split, in percent{base_sentence(results, corpus)}:\n\n"
        text += markdown_table(["", *COLUMNS.values()], lines) + "\n"
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


def benchmarks(results: Results) -> str:
    """What was measured side by side; the commands are in the results file."""
    lines = []
    for entry in results.benchmarks:
        others = {name: value for name, value in entry.items() if name not in ("name", "command", "ratio", "target")}
        texts = [value if isinstance(value, str) else f"{name}: {plain(value)}" for name, value in others.items()]
        lines.append([f"`{entry['name']}`", f"{entry['ratio']:.3f}", str(entry.get("target", "")), "; ".join(texts)])
    return markdown_table(["", "ratio", "target", "setting"], lines) if lines else NOTHING


def plain(value: float | dict[str, float]) -> str:
    """A number, or named numbers, without punctuation of Python's."""
    return ", ".join(f"{name} {number}" for name, number in value.items()) if isinstance(value, dict) else str(value)


def fill(card: str, results: Results) -> str:
    """
    The card with its generated sections renewed.

    Raises:
        ValueError: a section that is not known.
    """
    sections = {
        "setting": lambda: setting(results),
        "table4": lambda: tables(results, ("table4", "control")),
        "comparison": lambda: comparison(results),
        "table5": lambda: tables(results, ("table5",)),
        "counts": lambda: counts(results),
        "benchmarks": lambda: benchmarks(results),
    }

    def renew(match: re.Match) -> str:
        if match[2] not in sections:
            raise ValueError(f"the card asks for {match[2]!r}; there are {', '.join(sections)}.")
        return match[1] + sections[match[2]]() + match[3]

    return SECTION.sub(renew, card)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", type=Path, default=CARDS / f"{METHOD}.md")
    parser.add_argument("--results", type=Path, default=CARDS / "results" / f"{METHOD}.json")
    parser.add_argument("--check", action="store_true", help="only say whether the card is up to date")
    args = parser.parse_args()
    card = args.card.read_text(encoding="utf-8")
    filled = fill(card, read_results(args.results, METHOD))
    if args.check and filled != card:
        sys.exit(f"{args.card} does not show what {args.results} holds: run recipes/write_card.py.")
    if not args.check:
        write_atomically(args.card, filled)


if __name__ == "__main__":
    main()
