"""Pictures of the suite: functions that take data and a path, and write one PNG in one move."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from .results import write_atomically

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999")  # Okabe and Ito
CHANGED = "#d0021b"
MAX_LABELLED_TOKENS = 130  # more ids in one strip could not be read


def save_figure(figure: Figure, path: str | Path):
    """Write a figure as PNG; an existing picture is replaced when the new one is whole."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=130, bbox_inches="tight")
    write_atomically(path, buffer.getvalue())


def plot_unit_edit_distance(
    rows: Mapping[str, Mapping[str, float]],
    path: str | Path,
    title: str,
    spread: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
):
    """
    Grouped bars of UED, one group per condition, one colour per row.

    rows: UED in percent by row and condition; conditions missing in a row leave a gap. spread: lowest and highest
    seed, drawn as a whisker.
    Raises ValueError for no rows.
    """
    if not rows:
        raise ValueError("There is no row to draw.")
    conditions = list(dict.fromkeys(name for values in rows.values() for name in values))
    figure = Figure(figsize=(max(6.0, 1.0 + 0.3 * len(conditions) * (len(rows) + 1)), 4.0))
    axes = figure.subplots()
    width = 0.84 / len(rows)
    for index, (row, values) in enumerate(rows.items()):
        positions = [place for place, name in enumerate(conditions) if name in values]
        heights = [values[conditions[place]] for place in positions]
        positions = [place + (index - (len(rows) - 1) / 2) * width for place in positions]
        axes.bar(positions, heights, width * 0.92, color=COLOURS[index % len(COLOURS)], label=row)
        limits = (spread or {}).get(row, {})
        for position, name, height in zip(positions, (name for name in conditions if name in values), heights):
            low, high = limits.get(name, (height, height))
            axes.vlines(position, low, high, color="black", linewidth=1.2)
            style = dict(ha="center", va="bottom", fontsize=7, rotation=90 if len(rows) > 3 else 0)
            axes.annotate(f"{height:.1f}", (position, high), (0, 2), textcoords="offset points", **style)
    ticks = ["\n".join(textwrap.fill(part, 12) for part in name.split(", ")) for name in conditions]
    axes.set_xticks(range(len(conditions)), ticks, fontsize=8)
    axes.set_ylabel("UED in % (lower is better)")
    axes.set_title(title, loc="left")
    axes.margins(y=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    if len(rows) > 1:
        below = dict(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=min(len(rows), 3))
        axes.legend(frameon=False, fontsize=8, **below)
    save_figure(figure, path)


def plot_voter_counts(curves: Mapping[str, Mapping[int, float]], path: str | Path, title: str):
    """Mean UED in percent over the number of voters, one curve per name (corpus, or the paper)."""
    figure = Figure(figsize=(6.0, 4.0))
    axes = figure.subplots()
    for index, (name, points) in enumerate(curves.items()):
        counts = sorted(points)
        style = dict(color=COLOURS[index % len(COLOURS)], marker="o", linestyle="--" if "paper" in name else "-")
        axes.plot(counts, [points[count] for count in counts], label=name, **style)
    axes.set_xticks(sorted({count for points in curves.values() for count in points}))
    axes.set_xlabel("voters N")
    axes.set_ylabel("mean UED in % (lower is better)")
    axes.set_ylim(bottom=0)
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save_figure(figure, path)


def plot_token_strips(
    codes: Mapping[str, Sequence[int] | Tensor],
    seconds_per_token: float,
    path: str | Path,
    title: str,
    waveform: np.ndarray | Tensor | None = None,
    sampling_rate: int = 16000,
):
    """
    The tokens of one utterance, clean above and each noise below, on one time axis; changed tokens are marked.

    codes: ids `(frames,)` by condition, the clean ones first, all of one length; waveform: the clean `(samples,)`,
    drawn above them. A token is a cell of `seconds_per_token` whose colour follows its id; where it differs from the
    clean one it is white in a red frame.
    Raises ValueError where there is no clean strip, and for lengths that differ.
    """
    strips = {name: [int(code) for code in row] for name, row in codes.items()}
    lengths = {name: len(row) for name, row in strips.items()}
    if not strips or len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"Token strips must all have one length of at least 1; got {lengths}.")
    num_tokens = next(iter(lengths.values()))
    width = min(max(7.0, 0.145 * num_tokens + 3), 26.0)
    figure = Figure(figsize=(width, 1.0 + 0.62 * (len(strips) + 1)), layout="constrained")
    ratios = ([1.0] if waveform is not None else []) + [0.72 * len(strips)]
    panels = np.atleast_1d(figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios))
    if waveform is not None:
        times = np.arange(len(waveform)) / sampling_rate
        panels[0].plot(times, np.asarray(waveform), color="#444444", linewidth=0.5)
        panels[0].set_yticks([])
        panels[0].spines[["top", "right", "left"]].set_visible(False)
    _draw_strips(panels[-1], strips, seconds_per_token)
    panels[0].set_title(title)
    panels[-1].set_xlabel("seconds")
    panels[-1].set_xlim(0, num_tokens * seconds_per_token)
    save_figure(figure, path)


def pale_colours(codes: list[int]) -> dict[int, list[float]]:
    """A colour (red, green, blue) for each token, of different hues for tokens that follow one another."""
    wheel = matplotlib.colormaps["hsv"]
    hues = {code: wheel(index * 0.381966 % 1.0)[:3] for index, code in enumerate(dict.fromkeys(codes))}
    return {code: [0.45 + 0.55 * part for part in hue] for code, hue in hues.items()}


def _draw_strips(axes: Axes, strips: dict[str, list[int]], seconds: float):
    """Rows of cells from top to bottom; beside each noisy row its share of changed tokens."""
    clean = next(iter(strips.values()))
    pale = pale_colours(clean)
    labels = []
    for line, (name, row) in enumerate(strips.items()):
        num_changed = sum(code != original for code, original in zip(row, clean))
        labels.append(name if line == 0 else f"{name}\n{num_changed} of {len(row)} changed")
        for place, (code, original) in enumerate(zip(row, clean)):
            _draw_token(axes, place * seconds, line, seconds, pale[original], code != original)
            if len(row) <= MAX_LABELLED_TOKENS:
                style = {"color": CHANGED, "fontweight": "bold"} if code != original else {"color": "#222222"}
                centre = (place + 0.5) * seconds
                axes.text(centre, line, code, rotation=90, ha="center", va="center", fontsize=6, zorder=4, **style)
    axes.set_ylim(len(strips) - 0.45, -0.55)
    axes.set_yticks(range(len(strips)), labels, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _draw_token(axes: Axes, start: float, line: int, seconds: float, colour, is_changed: bool):
    style = dict(facecolor=colour, edgecolor="white", lw=0.4)
    if is_changed:
        style = dict(facecolor="white", edgecolor=CHANGED, lw=1.3, zorder=3)
    axes.add_patch(Rectangle((start, line - 0.41), seconds, 0.82, **style))
