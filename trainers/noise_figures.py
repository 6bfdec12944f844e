"""Pictures of speech and noise told apart: how far noise moves frames, what the noise head sees, one recording."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from sklearn.manifold import TSNE
from torch import Tensor

from ..processing.audio_reading import SAMPLING_RATE
from .figures import COLOURS, pale_colours, save_figure
from .results import write_atomically

WIDTH = 9.0  # inches; shown at the width of a card, letters of 8 points can still be read
MAX_NUMBERED_TOKENS = 70  # more ids in a strip of that width could not
DIGITS = 3  # after the point, in the files of data
MARKERS = "sD^vPX<>ph"
SPEECH_COLOUR, RESIDUE_COLOUR, CLEAN_COLOUR = "#444444", COLOURS[5], "#bbbbbb"


def save_data(data: Mapping, path: str | Path):
    """Write what a picture shows beside it, as JSON under the picture's name."""
    write_atomically(Path(path).with_suffix(".json"), json.dumps(data, separators=(",", ":")) + "\n")


def _rounded(values: Sequence | np.ndarray | Tensor) -> list:
    """To three digits, which is finer than a picture; NumPy's float64, so that JSON shows no more."""
    return np.asarray(values, dtype=np.float64).round(DIGITS).tolist()


def plot_noise_map(
    waveform: np.ndarray | Tensor,
    maps: Mapping[str, Mapping[str, Sequence[float] | Tensor]],
    seconds_per_frame: float,
    path: str | Path,
    title: str,
):
    """
    The paper's Fig. 3: a clean utterance `(samples,)` at 16 kHz, and below it for each model a map noise x time of how
    far the noise moves the frames. One time axis, one colour scale. The maps are written as JSON beside the PNG.

    maps: by model, by noise, distances `(frames,)` in units of the mean distance of two different clean frames.
    Raises ValueError for no map, and for maps of different lengths.
    """
    shapes = {model: [len(row) for row in rows.values()] for model, rows in maps.items()}
    lengths = {length for row in shapes.values() for length in row}
    if len(lengths) != 1 or not all(shapes.values()):
        raise ValueError(f"Maps need rows of one length; got {shapes or 'no map'}.")
    heights = [1.0] + [0.24 * len(rows) + 0.35 for rows in maps.values()]
    figure = Figure(figsize=(WIDTH, 1.1 + sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    _draw_waveform(panels[0], waveform)
    tables = {model: np.array([np.asarray(row) for row in rows.values()]) for model, rows in maps.items()}
    highest = max(float(np.quantile(table, 0.995)) for table in tables.values()) or 1.0
    duration = lengths.pop() * seconds_per_frame
    for axes, (model, table) in zip(panels[1:], tables.items()):
        image = _draw_map(axes, table, list(maps[model]), duration, highest)
        axes.set_title(f"{model}: mean {table.mean():.2f}", fontsize=9, loc="left")
    bar = figure.colorbar(image, ax=list(panels[1:]), extend="max", pad=0.015, fraction=0.04, aspect=28)
    bar.set_label("L2 distance to the clean frame\n(1 = two different clean frames)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    panels[-1].set_xlabel("time in s", fontsize=9)
    panels[-1].tick_params(axis="x", labelsize=8)
    panels[-1].set_xlim(0.0, duration)
    figure.suptitle("\n".join(textwrap.wrap(title, 90)), fontsize=11)
    save_figure(figure, path)
    rounded = {model: {name: _rounded(row) for name, row in rows.items()} for model, rows in maps.items()}
    save_data({"title": title, "seconds_per_frame": seconds_per_frame, "maps": rounded}, path)


def _draw_map(axes: Axes, table: np.ndarray, names: list[str], duration: float, highest: float) -> AxesImage:
    """One row of cells per noise, over `duration` seconds; colours go from 0 to `highest`."""
    extent = (0.0, duration, len(table) - 0.5, -0.5)
    style = dict(aspect="auto", interpolation="nearest", cmap="magma", vmin=0.0, vmax=highest)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=8)
    axes.tick_params(axis="y", length=0)
    return axes.imshow(table, extent=extent, **style)


def project_features(features: Tensor, seed: int = 0) -> np.ndarray:
    """
    t-SNE of `(utterances, hidden)` features to the plane, `(utterances, 2)`; the same seed gives the same picture.

    Raises ValueError for fewer than three utterances.
    """
    if len(features) < 3:
        raise ValueError(f"t-SNE needs at least three utterances, got {len(features)}.")
    perplexity = min(30.0, (len(features) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features.double().numpy())


def plot_noise_features(panels: Mapping[str, tuple[np.ndarray, Sequence[str]]], path: str | Path, title: str):
    """
    The paper's Fig. 4: for each panel a scatter of utterances by the noise head's features, coloured by their noise.
    Places and labels are written as JSON beside the PNG.

    panels: by title, places `(utterances, 2)` of `project_features` and as many labels; "clean" is drawn in grey.
    Raises ValueError for no panel, and for places and labels of different numbers.
    """
    sizes = {name: (len(places), len(labels)) for name, (places, labels) in panels.items()}
    if not sizes or any(places != labels for places, labels in sizes.values()):
        raise ValueError(f"Panels need as many labels as places; got {sizes or 'no panel'}.")
    figure = Figure(figsize=(WIDTH * len(panels) / 2 if len(panels) > 1 else 5.5, 5.4), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, (places, labels)) in zip(all_axes, panels.items()):
        _draw_clusters(axes, places, labels)
        axes.set_title(name, fontsize=10)
        below = dict(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3, columnspacing=1.0, handletextpad=0.3)
        axes.legend(frameon=False, fontsize=8, markerscale=1.4, **below)
    figure.suptitle("\n".join(textwrap.wrap(title, 90)), fontsize=11)
    save_figure(figure, path)
    points = {name: {"places": _rounded(places), "labels": list(labels)} for name, (places, labels) in panels.items()}
    save_data({"title": title, "panels": points}, path)


def _draw_clusters(axes: Axes, places: np.ndarray, labels: Sequence[str]):
    """One colour and marker per label, clean speech behind them all."""
    names = sorted(set(labels) - {"clean"})
    colours = COLOURS[:6] if len(names) <= 6 else matplotlib.colormaps["tab20"].colors[::2]
    styles = {"clean": dict(color=CLEAN_COLOUR, marker="o", zorder=1)} if "clean" in labels else {}
    for index, name in enumerate(names):
        marker = MARKERS[(index + index // len(colours)) % len(MARKERS)]
        styles[name] = dict(color=colours[index % len(colours)], marker=marker, zorder=2)
    for name, style in styles.items():
        chosen = np.array([label == name for label in labels])
        text = f"{name.replace('_', ' ')} ({chosen.sum()})"
        axes.scatter(*places[chosen].T, s=22, linewidths=0.3, edgecolors="white", label=text, **style)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#cccccc")


def plot_explanation(
    waveform: np.ndarray | Tensor,
    codes: Sequence[int] | Tensor,
    distances: Sequence[float] | Tensor,
    noise_posterior: Mapping[str, float],
    seconds_per_frame: float,
    path: str | Path,
    title: str,
    max_bars: int = 8,
):
    """
    What the model makes of one recording: waveform, ids, the residue that they leave, and which noise it is taken for.

    waveform: `(samples,)` at 16 kHz; codes, distances: ids `(frames,)` and the L2 of each frame to its code;
    noise_posterior: probability by class, of which the `max_bars` highest are drawn; empty without a noise head.
    Raises ValueError for codes and distances of different lengths, and where there are none.
    """
    codes, distances = [int(code) for code in codes], np.asarray(distances, dtype=float)
    if len(codes) != len(distances) or not codes:
        raise ValueError(f"Expected one distance per id and at least one, got {len(codes)} and {len(distances)}.")
    bars = dict(sorted(noise_posterior.items(), key=lambda item: -item[1])[:max_bars])
    heights = [1.0, 0.55, 1.5]
    figure = Figure(
        figsize=(WIDTH, 1.3 + sum(heights) + (0.6 + 0.24 * len(bars) if bars else 0)), layout="constrained"
    )
    over_time, below = figure, None
    if bars:
        over_time, below = figure.subfigures(2, 1, height_ratios=[sum(heights) + 0.7, 0.6 + 0.24 * len(bars)])
    panels = over_time.subplots(3, 1, sharex=True, height_ratios=heights)
    _draw_waveform(panels[0], waveform)
    _draw_ids(panels[1], codes, seconds_per_frame)
    _draw_residue(panels[2], distances, seconds_per_frame)
    panels[-1].set_xlim(0.0, len(codes) * seconds_per_frame)
    if below is not None:
        _draw_posterior(below.subplots(), bars, len(noise_posterior))
    figure.suptitle("\n".join(textwrap.wrap(title, 90)), fontsize=11)
    save_figure(figure, path)


def _draw_waveform(axes: Axes, waveform: np.ndarray | Tensor):
    times = np.arange(len(waveform)) / SAMPLING_RATE
    axes.plot(times, np.asarray(waveform), color=SPEECH_COLOUR, linewidth=0.5)
    axes.set_ylabel("amplitude", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_ids(axes: Axes, codes: list[int], seconds: float):
    """A cell per token whose colour follows its id, with the id in it where it can be read."""
    colours = pale_colours(codes)
    cells = np.array([[colours[code] for code in codes]])
    axes.imshow(cells, aspect="auto", interpolation="nearest", extent=(0.0, len(codes) * seconds, 0.0, 1.0))
    axes.vlines(np.arange(1, len(codes)) * seconds, 0.0, 1.0, color="white", linewidth=0.4)
    if len(codes) <= MAX_NUMBERED_TOKENS:
        for place, code in enumerate(codes):
            style = dict(rotation=90, ha="center", va="center", fontsize=7, color="#222222")
            axes.text((place + 0.5) * seconds, 0.5, code, **style)
    axes.set_yticks([])
    axes.set_ylabel("ids", fontsize=8)
    axes.tick_params(axis="x", length=0)
    axes.spines[:].set_visible(False)


def _draw_residue(axes: Axes, distances: np.ndarray, seconds: float):
    """The distance of each frame to its code, and on a second scale its square, the residue's energy."""
    edges = np.arange(len(distances) + 1) * seconds
    axes.stairs(distances, edges, fill=True, color=RESIDUE_COLOUR, alpha=0.35)
    axes.stairs(distances, edges, color=RESIDUE_COLOUR, linewidth=1.0)
    axes.set_ylim(0.0, max(float(distances.max()), 1e-6) * 1.08)
    energy = axes.secondary_yaxis("right", functions=(np.square, lambda energy: np.sqrt(np.maximum(energy, 0.0))))
    energy.set_ylabel("residue energy", fontsize=8)
    axes.set_ylabel("distance to code (L2)", fontsize=8)
    axes.set_xlabel("time in s", fontsize=9)
    for one in (axes, energy):
        one.tick_params(labelsize=8)
    axes.spines["top"].set_visible(False)


def _draw_posterior(axes: Axes, bars: dict[str, float], num_classes: int):
    """Horizontal bars in percent, the likeliest on top."""
    names, values = list(bars), [100.0 * value for value in bars.values()]
    colours = [CLEAN_COLOUR if name == "unknown" else COLOURS[0] for name in names]
    drawn = axes.barh(range(len(names)), values, height=0.72, color=colours)
    axes.axvline(100.0 / num_classes, color="#888888", linewidth=0.8, linestyle="--")
    over_line = dict(facecolor="white", edgecolor="none", pad=1.0)
    axes.bar_label(drawn, [f"{value:.1f} %" for value in values], fontsize=8, padding=4, bbox=over_line)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0.0, 108.0)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"noise posterior in % (dashed: uniform over {num_classes} classes)", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
