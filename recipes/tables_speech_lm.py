"""What SpeechLM's results show: the SLD paper's tables and figures beside ours, goals, pictures."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from evaluate_stable_token import CONDITIONS
from table_runs import Goal, format_goals, format_table

from clearspeech.trainers.metrics import relative_error_reduction
from clearspeech.trainers.results import Results, Run
from clearspeech.trainers.speech_lm_figures import (
    CLEAN,
    plot_alpha_sweep,
    plot_learning_curves,
    plot_snr_curves,
    read_snr_curves,
)

METHOD = "speech_lm"
KMEANS, STABLE_TOKEN = SOURCES = ("k-means", "StableToken")
LOSSES = {
    "Loss Masking": "none",
    "CE": "ce",
    "Label Smoothing CE": "label_smoothing",
    "KL Divergence": "kl",
    "SLD": "sld",
}
COMPARED = ("Loss Masking", "SLD")  # with three seeds
ALPHA = 0.008
# Temperature divides already normalized labels and its square multiplies the term: 100 times alpha keeps its size at
# 0.1. Divided by units instead of utterances, of which one has some 100 units, it takes 100 times alpha, too.
SWEEP = {
    **{f"alpha={alpha:g}": ("--distillation_weight", f"{alpha:g}") for alpha in (0.0008, ALPHA, 0.08, 0.8)},
    "epsilon=0.5": ("--smoothing", "0.5"),
    "T=0.1": ("--temperature", "0.1"),
    "T=0.1, alpha=0.8": ("--temperature", "0.1", "--distillation_weight", "0.8"),
    "mean over units": ("--kl_reduction", "token"),
    "mean over units, alpha=0.8": ("--kl_reduction", "token", "--distillation_weight", "0.8"),
    "text positions, too": ("--kl_positions", "reference"),
}
SWEEP_SEED = 0  # the only one that all rows of the sweep have
SNR_KINDS = ("gaussian", "pink", "brown", "real")

# WER on LibriSpeech's dev-clean, dev-other, test-clean and test-other.
PAPER_COLUMNS = ("dev clean", "dev other", "test clean", "test other")
PAPER = {
    "WavLM": {
        "Loss Masking": (3.2, 7.1, 3.3, 7.0),
        "CE": (3.2, 7.2, 3.3, 7.2),
        "Label Smoothing CE": (3.1, 7.0, 3.1, 6.9),
        "KL Divergence": (3.0, 6.8, 3.1, 6.7),
        "SLD": (2.9, 6.6, 3.0, 6.7),
    },
    "HuBERT": {
        "Loss Masking": (2.9, 6.2, 3.0, 6.6),
        "CE": (2.8, 6.1, 2.8, 6.4),
        "Label Smoothing CE": (2.8, 6.3, 3.0, 6.6),
        "KL Divergence": (2.8, 6.0, 3.0, 6.4),
        "SLD": (2.6, 5.8, 2.7, 6.1),
    },
}
COLUMNS = {"wer": "WER", "rer": "RER", "validation/wer": "WER dev", "wer_noisy": "WER noisy"}
COLUMNS |= {f"wer/{name}": title for name, title in CONDITIONS.items()}
EMOTION_COLUMNS = {
    "accuracy": "accuracy",
    "accuracy_low": "from",
    "accuracy_high": "to",
    "accuracy_worst_speaker": "worst speaker",
    "accuracy_best_speaker": "best speaker",
    "majority": "majority class",
    "unparsed": "no class",
    **{f"accuracy/{name}": title for name, title in CONDITIONS.items()},
    "validation/wer": "WER dev",
}


TABLES = {
    "table1": tuple(f"{loss}, {source}" for source in SOURCES for loss in LOSSES),
    "figure2": tuple(SWEEP),
    "section4.2": SOURCES,
    "emotion": SOURCES,
}


def paper_figures(table: str, row: str) -> dict[str, float]:
    """The paper's figures for a row of k-means under our metric names, on LibriSpeech's clean sets with HuBERT."""
    loss, _, source = row.partition(", ")
    if table != "table1" or source != KMEANS:
        return {}
    dev, _, test, _ = PAPER["HuBERT"][loss]
    reduction = relative_error_reduction(test, PAPER["HuBERT"]["Loss Masking"][2])
    return {"wer": test, "validation/wer": dev} | ({} if loss == "Loss Masking" else {"rer": reduction})


def with_comparison(results: Results) -> Results:
    """
    The results with `rer`, the relative error reduction against Loss Masking over the same units, and `wer_noisy`, the
    mean over Table 13's noises. The sweep is of one seed, and so is what it is compared with.
    """

    def extended(run: Run) -> Run:
        metrics = dict(run.metrics)
        noisy = [metrics[name] for name in (f"wer/{condition}" for condition in CONDITIONS) if name in metrics]
        if noisy:
            metrics["wer_noisy"] = sum(noisy) / len(noisy)
        source = run.row.rpartition(", ")[2] if run.table == "table1" else KMEANS
        masking, seeds = f"Loss Masking, {source}", {"seed": SWEEP_SEED} if run.table == "figure2" else {}
        reference = results.seeds_mean("wer", table="table1", row=masking, corpus=run.corpus, **seeds)
        if reference and run.table in ("table1", "figure2") and run.row != masking and "wer" in metrics:
            metrics["rer"] = relative_error_reduction(metrics["wer"], reference)
        return replace(run, metrics=metrics)

    shown = [run for run in results.runs if run.table != "figure2" or run.seed == SWEEP_SEED]
    return replace(results, runs=[extended(run) for run in shown])


def measured_corpora(results: Results) -> list[str]:
    """The corpora that some row of the tables was measured on."""
    return list(dict.fromkeys(run.corpus for run in results.runs if run.table in TABLES))


def snr_curves(results: Results, table: str, corpus: str, name: str) -> dict[str, dict[str, dict[float, float]]]:
    """A figure by source, kind of noise and SNR in dB, means over seeds; that of clean speech at `CLEAN`."""
    curves = {}
    for source in SOURCES:
        found = results.find(table=table, row=source, corpus=corpus)
        names = dict.fromkeys(each for run in found for each in run.metrics)
        if any(each.startswith(f"{name}/") and "@" in each for each in names):
            means = {each: results.seeds_mean(each, table=table, row=source, corpus=corpus) for each in names}
            curves[source] = read_snr_curves(means, name)
    return curves


def goals(results: Results) -> Iterator[Goal]:
    """What the rows were to reach, as far as they are measured; means over seeds."""
    for corpus in measured_corpora(results):
        for source in SOURCES:
            masking, sld = (
                results.seeds_mean("wer", table="table1", row=f"{loss}, {source}", corpus=corpus) for loss in COMPARED
            )
            if masking is not None and sld is not None:
                yield Goal(f"WER of SLD, that of Loss Masking; {source}", corpus, sld, "<=", masking)
        curves = snr_curves(results, "section4.2", corpus, "wer")
        if set(curves) == set(SOURCES):
            for kind in (kind for kind in SNR_KINDS if all(kind in curve for curve in curves.values())):
                kmeans, ours = curves[KMEANS][kind], curves[STABLE_TOKEN][kind]
                gaps = {snr: kmeans[snr] - ours[snr] for snr in sorted(kmeans, reverse=True) if snr in ours}
                loudest, louder = min(gaps), list(zip(gaps.values(), list(gaps.values())[1:]))
                text = f"WER of k-means above StableToken's, {kind} noise of {loudest:g} dB against clean speech"
                yield Goal(text, corpus, gaps[loudest], ">", gaps[CLEAN])
                text = f"steps from clean speech to {kind} noise of {loudest:g} dB at which that gap grows"
                yield Goal(text, corpus, sum(after > before for before, after in louder), ">=", len(louder))
        for source in SOURCES:
            low, majority = (
                results.seeds_mean(name, table="emotion", row=source, corpus=corpus)
                for name in ("accuracy_low", "majority")
            )
            if low is not None and majority is not None:
                text = f"lower end of the emotion accuracy's 95 % interval, the majority class; {source}"
                yield Goal(text, corpus, low, ">", majority)


def format_tables(results: Results) -> str:
    """Every table on every corpus, and the goals."""
    results = with_comparison(results)
    lines = []
    for corpus in measured_corpora(results):
        for names, columns in ((("table1", "figure2"), COLUMNS), (("emotion",), EMOTION_COLUMNS)):
            columns = measured_columns(results, corpus, names, columns)
            if columns:
                lines += ["", f"{corpus}, test, in % (the paper's figure: HuBERT, LibriSpeech's clean sets)"]
                lines += format_table(results, corpus, {name: TABLES[name] for name in names}, columns, paper_figures)
        lines += format_snr_curves(snr_curves(results, "section4.2", corpus, "wer"), corpus)
    return "\n".join([*lines, "", *format_goals(goals(results))])


def measured_columns(
    results: Results, corpus: str, tables: tuple[str, ...], columns: dict[str, str]
) -> dict[str, str]:
    """Those of some columns that have a figure in one of the tables."""
    found = {name for run in results.find(corpus=corpus) if run.table in tables for name in run.metrics}
    return {name: title for name, title in columns.items() if name in found}


def format_snr_curves(curves: dict[str, dict[str, dict[float, float]]], corpus: str) -> list[str]:
    """WER over the SNR as lines of text."""
    lines = []
    for source, kinds in curves.items():
        for kind, points in kinds.items():
            snrs = sorted(points, reverse=True)
            cells = "".join(f"{'clean' if snr == CLEAN else f'{snr:g} dB'} {points[snr]:.2f}   " for snr in snrs)
            lines.append(f"{corpus}, {source}, {kind}: {cells.strip()}")
    return ["", *lines] if lines else []


def learning_curves(results: Results, source: str) -> dict[str, list[dict[int, float]]]:
    """Curves of Fig. 3 by loss, one per seed: nats by optimizer step."""
    curves = {}
    for loss in LOSSES:
        found = results.find(table="figure3", row=f"{loss}, {source}")
        if found:
            curves[loss] = [
                {int(name.partition("@")[2]): value for name, value in run.metrics.items()} for run in found
            ]
    return curves


def alpha_curves(results: Results, corpora: list[str]) -> tuple[dict[str, dict[float, float]], dict[str, float]]:
    """Fig. 2 as far as it is measured: WER of dev speech by corpus and alpha, and that of Loss Masking by corpus."""
    curves, masking = {}, {}
    for corpus in corpora:
        wanted = dict(metric="validation/wer", corpus=corpus, seed=SWEEP_SEED)
        rows = {name: name.removeprefix("alpha=") for name in SWEEP if name.startswith("alpha=")}
        means = {float(alpha): results.seeds_mean(table="figure2", row=name, **wanted) for name, alpha in rows.items()}
        points = {alpha: mean for alpha, mean in means.items() if mean is not None}
        reference = results.seeds_mean(table="table1", row=f"Loss Masking, {KMEANS}", **wanted)
        curves |= {corpus: points} if points else {}
        masking |= {} if reference is None else {corpus: reference}
    return curves, masking


def draw_figures(results: Results, folder: Path) -> None:
    """The paper's Figs. 2 and 3, and StableToken's Fig. 3 of WER and of emotions, as far as they are measured."""
    corpora = measured_corpora(results)
    alphas, masking = alpha_curves(results, corpora)
    if alphas:
        plot_alpha_sweep(alphas, folder / f"{METHOD}_figure2.png", f"SLD on {KMEANS} units, dev speech", masking)
    for source in SOURCES:
        curves, name = learning_curves(results, source), source.lower().replace("-", "")
        if curves:
            plot_learning_curves(curves, folder / f"{METHOD}_figure3_{name}.png", f"Loss on units of {source}")
    for corpus in corpora:
        curves = snr_curves(results, "section4.2", corpus, "wer")
        if curves:
            title, path = f"SLD on {corpus}", folder / f"{METHOD}_snr_{corpus}.png"
            plot_snr_curves(curves, path, title, "WER in % (lower is better)", seed_bands(results, corpus))
        curves = snr_curves(results, "emotion", corpus, "accuracy")
        if curves:
            low, high = (snr_curves(results, "emotion", corpus, f"accuracy_{end}") for end in ("low", "high"))
            majority = results.seeds_mean("majority", table="emotion", corpus=corpus)
            path, label = folder / f"{METHOD}_emotion_{corpus}.png", "accuracy in % (higher is better)"
            plot_snr_curves(
                curves, path, f"Emotion on {corpus}", label, joined(low, high), ("most frequent class", majority)
            )


def seed_bands(results: Results, corpus: str) -> dict[str, dict[str, dict[float, tuple[float, float]]]]:
    """Lowest and highest seed at every point of `snr_curves`."""
    bands = {}
    for seed in {run.seed for run in results.runs}:
        of_seed = replace(results, runs=results.find(seed=seed))
        for source, kinds in snr_curves(of_seed, "section4.2", corpus, "wer").items():
            for kind, points in kinds.items():
                known = bands.setdefault(source, {}).setdefault(kind, {})
                for snr, value in points.items():
                    low, high = known.get(snr, (value, value))
                    known[snr] = (min(low, value), max(high, value))
    return bands


def joined(low: dict, high: dict) -> dict[str, dict[str, dict[float, tuple[float, float]]]]:
    """Two sets of curves as intervals."""
    return {
        source: {
            kind: {snr: (low[source][kind][snr], high[source][kind][snr]) for snr in low[source][kind]}
            for kind in low[source]
        }
        for source in low
    }
