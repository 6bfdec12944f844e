"""
HASRD's tables, goals and pictures, made of its results: the names of the rows, the paper's figures, the layer that is
best on validation. For `recipes/reproduce_hasrd.py`, which measures them, and `recipes/card_hasrd.py`.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pretrain_best_rq import PRESETS as BEST_RQ_PRESETS
from table_runs import Goal, format_goals, format_table

from clearspeech.trainers.bootstrap import Estimate
from clearspeech.trainers.figures import COLOURS, save_figure
from clearspeech.trainers.results import Results, Run

METHOD = "hasrd"
NORMALIZATIONS = ("sentence", "global")
CHOSEN = NORMALIZATIONS[0]  # HASRD's in the paper
LAYERS = tuple(range(BEST_RQ_PRESETS["mini"]["num_hidden_layers"] + 1))  # 0: what goes into the first
HASRD, RVQ = "HASRD", "RVQ alone"  # the codecs: with a semantic book, and of residual books only
FBANK = "Fbank"
COMBINED, ACOUSTIC, SEMANTIC = TOKENS = ("Combined", "Acoustic", "Semantic")  # Table 4's
BOOKS = dict(zip(TOKENS, ("all", "acoustic", "semantic")))  # as the recipes call them
RECONSTRUCTION, RECOGNITION = "Reconstruction", "ASR"  # Fig. 2's


def encoder_name(normalization: str, part: str | None = None) -> str:
    """`BestRQ+, sentence`, or `BestRQ+, sentence, k-means`."""
    return ", ".join(filter(None, ("BestRQ+", normalization, part)))


def layer_name(normalization: str, layer: int) -> str:
    return encoder_name(normalization, f"layer {layer}")


BEST, KMEANS, WEIGHTED = "best layer", "k-means", "weighted layers"
TABLES = {
    "table3": (
        FBANK,
        *[encoder_name(each, part) for each in reversed(NORMALIZATIONS) for part in (BEST, KMEANS)],
        encoder_name(CHOSEN, WEIGHTED),
    ),
    "table4": TOKENS,
    "first_book": (HASRD, RVQ),
}
COLUMNS = {"wer": "WER", "cer": "CER", "layer": "layer"}
TABLE4_COLUMNS = {
    "similarity": "SIM",
    "wer": "WER of the tokens",
    "cer": "CER of the tokens",
    "resynthesis_wer": "WER of the resynthesis",
    "mel_distance": "mel distance",
    "stft_distance": "STFT distance",
}
# LibriSpeech's test-clean: WER and CER of latents and of k-means; speaker similarity and WER of HASRD's tokens
PAPER_TABLE3 = {
    FBANK: (35.8, 11.8),
    encoder_name("global", BEST): (13.2, 3.7),
    encoder_name("global", KMEANS): (37.4, 12.6),
    encoder_name("sentence", BEST): (12.6, 3.6),
    encoder_name("sentence", KMEANS): (28.0, 9.3),
}
PAPER_TABLE4 = {COMBINED: (0.92, 24.2), ACOUSTIC: (0.67, 70.2), SEMANTIC: (0.15, 21.0)}
# by name: the rows whose trainings are compared, the first being the baseline, and where the second one stands
COMPARISONS = {
    "semantic book against the first of RVQ alone": (
        (f"{RVQ}, first book", encoder_name(CHOSEN, KMEANS)),
        ("first_book", HASRD),
    ),
    "semantic tokens against acoustic ones": ((ACOUSTIC, encoder_name(CHOSEN, KMEANS)), ("table4", SEMANTIC)),
    "k-means, sentence against global normalization": (
        (encoder_name("global", KMEANS), encoder_name("sentence", KMEANS)),
        ("table3", encoder_name("sentence", KMEANS)),
    ),
}


def paper_figures(table: str, row: str) -> dict[str, float]:
    """The paper's figures for a row under our metric names, on test-clean; empty where it prints none."""
    if table == "table3":
        return dict(zip(("wer", "cer"), PAPER_TABLE3.get(row, ())))
    return dict(zip(("similarity", "wer"), PAPER_TABLE4[row])) if table == "table4" else {}


def corpora_in(results: Results) -> list[str]:
    """What was measured on; not what was trained on, which Fig. 2's rows name."""
    return list(dict.fromkeys(run.corpus for run in results.runs if run.split == "test"))


def best_layer(results: Results, normalization: str, corpora: list[str]) -> int | None:
    """The layer with the lowest WER on validation, mean over the corpora; None where none was measured on all."""
    errors = {}
    for layer in LAYERS:
        row = dict(table="layers", row=layer_name(normalization, layer))
        wers = [results.seeds_mean("validation/wer", **row, corpus=corpus) for corpus in corpora]
        if wers and None not in wers:
            errors[layer] = sum(wers) / len(wers)
    return min(errors, key=errors.get) if errors else None


def with_table4(results: Results) -> Results:
    """
    The results with Table 4's rows whole: beside the WER of the tokens' recognizer, the voice's similarity and the
    distances of the audio, and its WER.
    """
    runs = [run for run in results.runs if run.table != "table4"]
    for codec in results.find(table="codec", row=HASRD):
        for row, books in BOOKS.items():
            suffix, place = "" if books == "all" else f"/{books}", dict(row=row, corpus=codec.corpus)
            found = {
                name: codec.metrics.get(f"{name}{suffix}") for name in ("similarity", "mel_distance", "stft_distance")
            }
            found |= {name: results.seeds_mean(name, table="table4", **place) for name in ("wer", "cer")}
            found["resynthesis_wer"] = results.seeds_mean("wer", table="resynthesis", **place)
            figures = {name: value for name, value in found.items() if value is not None}
            runs += [replace(codec, table="table4", row=row, metrics=figures)] if figures else []
    return replace(results, runs=runs)


def goals(results: Results) -> Iterator[Goal]:
    """What was to be reached, as far as it is measured; means over seeds."""
    whole = with_table4(results)

    def pair(metric: str, table: str, left: str, right: str, corpus: str) -> tuple[float | None, float | None]:
        return tuple(whole.seeds_mean(metric, table=table, row=row, corpus=corpus) for row in (left, right))

    best, kmeans = ([encoder_name(each, part) for each in NORMALIZATIONS] for part in (BEST, KMEANS))
    asked = [
        ("WER of the best layer, that of Fbank", "wer", "<", "table3", best[0], FBANK),
        ("best layer: WER with sentence normalization, with global", "wer", "<", "table3", *best),
        ("k-means: WER with sentence normalization, with global", "wer", "<", "table3", *kmeans),
        ("WER of semantic tokens, of acoustic ones", "wer", "<", "table4", SEMANTIC, ACOUSTIC),
        ("WER of semantic resynthesis, of acoustic", "resynthesis_wer", "<", "table4", SEMANTIC, ACOUSTIC),
        ("similarity of acoustic resynthesis, of semantic", "similarity", ">", "table4", ACOUSTIC, SEMANTIC),
        ("mel distance of all books, of the semantic alone", "mel_distance", "<", "table4", COMBINED, SEMANTIC),
        ("WER of the semantic book, of the first book of RVQ alone", "wer", "<", "first_book", HASRD, RVQ),
    ]
    for corpus in corpora_in(results):
        for text, metric, relation, table, left, right in asked:
            ours, limit = pair(metric, table, left, right, corpus)
            if ours is not None and limit is not None:
                yield Goal(text, corpus, ours, relation, limit)


def comparison_of(run: Run) -> Estimate:
    """What a run of `bootstrap` says."""
    return Estimate(*(run.metrics[name] for name in ("change", "change_low", "change_high")))


def format_tables(results: Results) -> str:
    """Every table on every corpus, the layers, the intervals, and the goals."""
    whole, lines = with_table4(results), []
    for corpus in corpora_in(results):
        lines += ["", f"{corpus}, test (the paper's figure: LibriSpeech, test-clean)"]
        layers = {"layers": [layer_name(each, layer) for each in NORMALIZATIONS for layer in LAYERS]}
        columns = {"wer": "WER", "cer": "CER", "validation/wer": "WER, validation"}
        lines += format_table(results, corpus, layers, columns, paper_figures)
        for name in TABLES:
            columns = TABLE4_COLUMNS if name == "table4" else COLUMNS
            lines += format_table(whole, corpus, {name: TABLES[name]}, columns, paper_figures)
    lines += ["", "Change of the WER, 95 % interval:"]
    for run in results.find(table="bootstrap"):
        found = comparison_of(run)
        verdict = "  covers zero" if found.covers_zero else ""
        lines.append(f"{run.corpus}, {run.row}: {found.value:+.1f} % ({found.low:+.1f} to {found.high:+.1f}){verdict}")
    return "\n".join([*lines, "", *format_goals(goals(results))])


def distances_by_books(run: Run, metric: str) -> list[float]:
    """A codec's distance with its first 1, 2, ... and all books."""
    firsts = sorted(
        (int(name.rpartition("_")[2]), value)
        for name, value in run.metrics.items()
        if name.startswith(f"{metric}/first_")
    )
    return [value for _, value in firsts] + [run.metrics[metric]]


def draw_pictures(results: Results, folder: Path) -> None:
    """The curve over layers, the distances over books, and the weights of the layers (Fig. 2), where measured."""
    if results.find(table="layers"):
        draw_layers(results, folder / f"{METHOD}_layers.png")
    if results.find(table="codec"):
        draw_books(results, folder / f"{METHOD}_books.png")
    if results.find(table="figure2"):
        draw_weights(results, folder / f"{METHOD}_figure2.png")


def panels(corpora: list[str], title: str, rows: int = 1) -> tuple[Figure, list[list[Axes]]]:
    """A figure with one column for each corpus."""
    figure = Figure(figsize=(4.4 * len(corpora), 3.3 * rows), layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure, figure.subplots(rows, len(corpora), squeeze=False)


def draw_layers(results: Results, path: Path) -> None:
    """WER over the layer, a line for each normalization; across, what Fbank and k-means have."""
    corpora = list(dict.fromkeys(run.corpus for run in results.find(table="layers")))
    figure, ((*axes,),) = panels(corpora, "What the recognizer reads from each layer (test)")
    for corpus, panel in zip(corpora, axes):
        for colour, normalization in zip(COLOURS, NORMALIZATIONS):
            wers = {
                layer: results.seeds_mean("wer", table="layers", row=layer_name(normalization, layer), corpus=corpus)
                for layer in LAYERS
            }
            shown = {layer: wer for layer, wer in wers.items() if wer is not None}
            if shown:
                panel.plot(list(shown), list(shown.values()), marker="o", color=colour, label=normalization)
            draw_level(results, encoder_name(normalization, KMEANS), corpus, panel, colour, "--")
        draw_level(results, FBANK, corpus, panel, "#777777", ":")
        finish(panel, corpus, "layer (0: what goes into the first)", "WER in %")
    save_figure(figure, path)


def draw_level(results: Results, row: str, corpus: str, panel: Axes, colour: str, style: str) -> None:
    """A line across, at the WER of a row of Table 3, where it is measured."""
    wer = results.seeds_mean("wer", table="table3", row=row, corpus=corpus)
    if wer is not None:
        panel.axhline(wer, color=colour, linestyle=style, linewidth=1.2, label=row.removeprefix("BestRQ+, "))


def draw_books(results: Results, path: Path) -> None:
    """Mel and STFT distance over the number of books, a line for each codec."""
    codecs = results.find(table="codec", seed=0)
    corpora = list(dict.fromkeys(run.corpus for run in codecs))
    titles = {"mel_distance": "mel distance (decades)", "stft_distance": "STFT distance"}
    figure, axes = panels(corpora, "Distance from the recording (test)", rows=len(titles))
    for of_metric, (metric, title) in zip(axes, titles.items()):
        for corpus, panel in zip(corpora, of_metric):
            for colour, run in zip(COLOURS, [each for each in codecs if each.corpus == corpus]):
                values = distances_by_books(run, metric)
                panel.plot(range(1, len(values) + 1), values, marker="o", color=colour, label=run.row)
            finish(panel, corpus, "books, the first so many", title)
    save_figure(figure, path)


def draw_weights(results: Results, path: Path) -> None:
    """Fig. 2: the weights of the layers for reconstruction and for ASR."""
    figure, (((panel,),)) = panels(["trained"], "Weights of the layers (the paper's Fig. 2)")
    for colour, run in zip(COLOURS, results.find(table="figure2", seed=0)):
        layers = [int(name.removeprefix("layer ")) for name in run.metrics]
        panel.plot(layers, list(run.metrics.values()), marker="o", color=colour, label=run.row)
    finish(panel, "", "layer (0: what goes into the first)", "weight")
    save_figure(figure, path)


def finish(panel: Axes, title: str, across: str, up: str) -> None:
    panel.set_title(title, loc="left", fontsize=10)
    panel.set_xlabel(across)
    panel.set_ylabel(up)
    panel.set_ylim(bottom=0)
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8)
