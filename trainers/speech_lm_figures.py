"""Pictures of speech language models: learning curves, the sweep of alpha, and WER or accuracy under louder noise."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from .figures import COLOURS, save_figure

CLEAN = math.inf  # the SNR of speech without noise
MARKERS = "osD^vPX"


def read_learning_curve(folder: str | Path, metric: str = "eval_text") -> dict[int, float]:
    """
    A figure that a training logged, by optimizer step, from the `trainer_state.json` of its folder or, while it is
    still running, of its last checkpoint.

    metric: as it stands in the log; the cross-entropy of dev text in nats by default.
    Raises FileNotFoundError without such a file, and ValueError where nothing was logged under this name.
    """
    path = Path(folder, TRAINER_STATE_NAME)
    checkpoint = get_last_checkpoint(str(folder)) if path.parent.is_dir() else None
    if not path.exists() and checkpoint is not None:
        path = Path(checkpoint, TRAINER_STATE_NAME)
    if not path.exists():
        raise FileNotFoundError(f"{folder} has no {TRAINER_STATE_NAME}, nor has a checkpoint in it: train first.")
    history = json.loads(path.read_text())["log_history"]
    curve = {line["step"]: line[metric] for line in history if metric in line}
    if not curve:
        logged = sorted({name for line in history for name in line})
        raise ValueError(f"{path} has no {metric!r}; it has {', '.join(logged) or 'nothing'}. Evaluate in training.")
    return curve


def read_snr_curves(metrics: Mapping[str, float], name: str) -> dict[str, dict[float, float]]:
    """
    What an evaluation measured over the SNR: figures by kind of noise and SNR in dB, that of clean speech at `CLEAN`.

    metrics: `<name>` and `<name>/<kind>@<SNR>`, as recipes/evaluate_speech_lm.py writes them.
    Raises ValueError when there is no such point.
    """
    curves: dict[str, dict[float, float]] = {}
    for key, value in metrics.items():
        measured, _, condition = key.partition("/")
        kind, at, snr_db = condition.partition("@")
        if measured == name and at:
            curves.setdefault(kind, {})[float(snr_db)] = value
    if not curves:
        raise ValueError(f"There is no {name}/<kind>@<SNR> among {', '.join(metrics)}: measure with --snr_curve.")
    if name in metrics:
        curves = {kind: {CLEAN: metrics[name]} | points for kind, points in curves.items()}
    return curves


def plot_learning_curves(curves: Mapping[str, Sequence[Mapping[int, float]]], path: str | Path, title: str):
    """
    SLD's Fig. 3: cross-entropy of dev text in nats over optimizer steps, one colour per loss on speech.

    curves: by the loss's name one curve per seed (`read_learning_curve`), drawn as their mean with a band from lowest
    to highest over the steps that all of them have. Raises ValueError for no curve, and seeds without a common step.
    """
    figure, axes = _single_panel(title)
    for index, (name, seeds) in enumerate(curves.items()):
        steps = sorted(set.intersection(*(set(curve) for curve in seeds))) if seeds else []
        if not steps:
            raise ValueError(f"The {len(seeds)} curves of {name!r} have no step in common.")
        values = [[curve[step] for curve in seeds] for step in steps]
        label = f"{name} ({len(seeds)} seeds)" if len(seeds) > 1 else name
        _draw_line(axes, index, steps, [sum(row) / len(row) for row in values], label, markersize=3.5)
        if len(seeds) > 1:
            _draw_band(axes, index, steps, [(min(row), max(row)) for row in values])
    if not curves:
        raise ValueError("There is no learning curve to draw.")
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("dev text cross-entropy in nats (lower is better)")
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def plot_alpha_sweep(
    curves: Mapping[str, Mapping[float, float]],
    path: str | Path,
    title: str,
    loss_masking: Mapping[str, float] | None = None,
):
    """
    SLD's Fig. 2: WER in percent over the KL divergence's weight alpha, on a logarithmic axis, one line per corpus.

    loss_masking: WER by corpus of the model without a loss on speech, drawn dashed in the corpus's colour.
    Raises ValueError for no point, and an alpha that is not positive, which such an axis has no place for.
    """
    alphas = sorted({alpha for points in curves.values() for alpha in points})
    if not alphas or alphas[0] <= 0:
        raise ValueError(f"A logarithmic axis takes positive alphas, and at least one; got {alphas}.")
    figure, axes = _single_panel(title)
    for index, (name, points) in enumerate(curves.items()):
        _draw_line(axes, index, sorted(points), [points[alpha] for alpha in sorted(points)], name)
        if name in (loss_masking or {}):
            style = dict(color=COLOURS[index % len(COLOURS)], linestyle="--", linewidth=1.0)
            axes.axhline(loss_masking[name], label=f"{name}, loss masking", **style)
    axes.set_xscale("log")
    axes.set_xticks(alphas, [f"{alpha:g}" for alpha in alphas])
    axes.minorticks_off()
    axes.set_xlabel(r"weight $\alpha$ of the KL divergence")
    axes.set_ylabel("WER in % (lower is better)")
    # lines may run anywhere: below the axes none is covered
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    save_figure(figure, path)


def plot_snr_curves(
    curves: Mapping[str, Mapping[str, Mapping[float, float]]],
    path: str | Path,
    title: str,
    label: str,
    bands: Mapping[str, Mapping[str, Mapping[float, tuple[float, float]]]] | None = None,
    baseline: tuple[str, float] | None = None,
):
    """
    StableToken's Fig. 3: a figure in percent over the SNR, one panel per kind of noise, one line per model.

    curves: by model, kind and SNR in dB (`read_snr_curves`); louder noise stands to the right, clean speech leftmost.
    label: of the vertical axis. bands: (lowest, highest) at the points, an interval or a spread over seeds; baseline:
    name and height of a dashed line, such as the majority class's accuracy.
    Raises ValueError for no point.
    """
    kinds = list(dict.fromkeys(kind for of_model in curves.values() for kind in of_model))
    levels = {snr for of_model in curves.values() for points in of_model.values() for snr in points}
    places = _snr_places(levels)
    if not kinds or not places:
        raise ValueError("There is no curve over the SNR to draw.")
    figure = Figure(figsize=(max(2.1 * len(kinds) + 0.4, 5.0), 3.4), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharex=True, sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, kinds):
        for index, (model, of_model) in enumerate(curves.items()):
            points = of_model.get(kind, {})
            snrs = sorted(points, reverse=True)
            across = [places[snr] for snr in snrs]
            _draw_line(axes, index, across, [points[snr] for snr in snrs], model)
            limits = (bands or {}).get(model, {}).get(kind)
            if limits:
                _draw_band(axes, index, across, [limits[snr] for snr in snrs])
        if baseline is not None:
            axes.axhline(baseline[1], color="#777777", linestyle="--", linewidth=1.0, label=baseline[0])
        axes.set_title(kind, fontsize=10)
        axes.set_xticks(list(places.values()), ["clean" if snr == CLEAN else f"{snr:g}" for snr in places], fontsize=8)
        axes.tick_params(axis="y", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(label)
    panels[0].set_ylim(bottom=0)
    panels[len(kinds) // 2].set_xlabel("SNR in dB")
    figure.suptitle(title, fontsize=11)
    handles, labels = panels[0].get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False, fontsize=8
        )
    save_figure(figure, path)


def _snr_places(levels: set[float]) -> dict[float, float]:
    """Where each SNR stands, falling to the right in dB; clean speech a step left of the highest."""
    noisy = sorted(levels - {CLEAN}, reverse=True)
    step = (noisy[0] - noisy[-1]) / (len(noisy) - 1) if len(noisy) > 1 else 5.0
    clean = {CLEAN: -noisy[0] - step if noisy else 0.0} if CLEAN in levels else {}
    return clean | {snr: -snr for snr in noisy}


def _single_panel(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.2))
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _draw_line(axes: Axes, index: int, across: list[float], up: list[float], label: str, markersize: float = 5.0):
    """The `index`th line of a picture, in its colour and with its marker."""
    style = dict(color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)], markersize=markersize)
    axes.plot(across, up, label=label, linewidth=1.5, **style)


def _draw_band(axes: Axes, index: int, across: list[float], limits: list[tuple[float, float]]):
    low, high = zip(*limits)
    axes.fill_between(across, low, high, color=COLOURS[index % len(COLOURS)], alpha=0.15, linewidth=0)
