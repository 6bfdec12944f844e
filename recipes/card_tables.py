"""What the cards of all methods are put together from: tables of results, of sizes and of costs, in Markdown."""

import shlex
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any

from table_runs import Goal

from clearspeech.trainers.results import Results, Run

NOTHING = "Not measured yet.\n"


def markdown_table(header: list[str], lines: list[list[str]]) -> str:
    rows = [header, ["---"] + ["---:"] * (len(header) - 1), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def option(run: Run, name: str) -> list[str]:
    """The values of an option in the command of a run, where it stands last."""
    values, current = [], None
    for word in shlex.split(run.command, comments=True):
        if word.startswith("--"):
            current = word
            values = [] if word == name else values
        elif current == name:
            values.append(word)
    return values


def corpora_of(results: Results, tables: Container[str]) -> list[str]:
    """The corpora that some row of the tables was measured on, in the order of the results."""
    return list(dict.fromkeys(run.corpus for run in results.runs if run.table in tables))


def cells(results: Results, columns: Iterable[str], ranged: Container[str], **wanted: str) -> list[str]:
    """Figures of one row: means over seeds, and the range of those that are `ranged`; empty where there are none."""
    texts = []
    for name in columns:
        values = [run.metrics[name] for run in results.find(**wanted) if name in run.metrics]
        text = f"{sum(values) / len(values):.2f}" if values else ""
        if len(values) > 1 and name in ranged:
            text += f" ({min(values):.2f} to {max(values):.2f})"
        texts.append(text)
    return texts


def result_table(
    results: Results,
    corpus: str,
    entries: Iterable[tuple[str, str]],
    columns: Mapping[str, str],
    ranged: Container[str],
    paper_figures: Callable[[str, str], Mapping[str, float]],
) -> str:
    """The measured rows (table, row) on one corpus; under each of ours the paper's, marked as such."""
    lines = []
    for table, row in entries:
        found = results.find(table=table, row=row, corpus=corpus)
        if found:
            seeds = f", {len(found)} seeds" if len(found) > 1 else ""
            figures = cells(results, columns, ranged, table=table, row=row, corpus=corpus)
            lines.append([f"**{row}**{seeds}", *figures])
        paper = paper_figures(table, row)
        if found and any(name in paper for name in columns):
            values = [f"*{paper[name]:.2f}*" if name in paper else "" for name in columns]
            lines.append([f"*{row}: the paper's*", *values])
    return markdown_table(["", *columns.values()], lines)


def preset_table(presets: Mapping[str, Mapping[str, Any]], arguments: Iterable[type], hidden: Container[str]) -> str:
    """What `--preset mini` of a training recipe sets, beside the value without it; arguments: its dataclasses."""
    known = [each for of_class in arguments for each in fields(of_class)]
    made = {each.name: each.default_factory() for each in known if each.default_factory is not MISSING}
    defaults = {each.name: each.default for each in known} | made | presets["paper"]
    chosen = {name: value for name, value in presets["mini"].items() if name not in hidden}
    lines = [[f"`--{name}`", f"`{value}`", f"`{defaults[name]}`"] for name, value in chosen.items()]
    return markdown_table(["", "mini", "default"], lines)


def goal_table(goals: Iterable[Goal]) -> str:
    """What was to be reached."""
    lines = [
        [
            goal.text,
            f"`{goal.corpus}`",
            f"{goal.value:.2f}",
            f"{goal.relation} {goal.limit:.2f}",
            "met" if goal.is_met else "**missed**",
        ]
        for goal in goals
    ]
    return markdown_table(["", "corpus", "ours", "goal", ""], lines) if lines else NOTHING


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
