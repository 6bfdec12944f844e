"""
HASRD's pictures, made of its results: curves over layers and books, Table 4 and the first books with their intervals,
the weights of the layers. For `recipes/reproduce_hasrd.py`.
"""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tables_hasrd import (
    FBANK,
    FIRST_BOOK,
    HASRD,
    KMEANS,
    LAYERS,
    METHOD,
    NORMALIZATIONS,
    RVQ,
    TOKENS,
    comparison_of,
    distances_by_books,
    encoder_name,
    layer_name,
    with_table4,
)

from clearspeech.trainers.figures import COLOURS, save_figure
from clearspeech.trainers.results import Results


def draw_pictures(results: Results, folder: Path) -> None:
    """All of them whose figures are measured."""
    if results.find(table="layers"):
        draw_layers(results, folder / f"{METHOD}_layers.png")
    if results.find(table="codec"):
        draw_books(results, folder / f"{METHOD}_books.png")
    if with_table4(results).find(table="table4"):
        draw_table4(results, folder / f"{METHOD}_table4.png")
    if results.find(table="first_book"):
        draw_first_book(results, folder / f"{METHOD}_first_book.png")
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


def draw_table4(results: Results, path: Path) -> None:
    """What combined, acoustic and semantic books hold: words, and the voice."""
    whole = with_table4(results)
    corpora = list(dict.fromkeys(run.corpus for run in whole.find(table="table4")))
    titles = {"wer": "WER of the tokens in %", "resynthesis_wer": "WER of the resynthesis in %"}
    titles["similarity"] = "similarity of the voice"
    figure, axes = panels(corpora, "What the books hold (test; 95 % intervals over utterances)", rows=len(titles))
    for of_metric, (metric, title) in zip(axes, titles.items()):
        for corpus, panel in zip(corpora, of_metric):
            draw_bars(panel, read_intervals(whole, "table4", TOKENS, corpus, metric), corpus, title)
    save_figure(figure, path)


def draw_first_book(results: Results, path: Path) -> None:
    """What is read in the semantic book, and in the first book of RVQ alone; beneath, the change where it is known."""
    corpora = list(dict.fromkeys(run.corpus for run in results.find(table="first_book")))
    figure, (axes,) = panels(corpora, "What is read in the first book (test; 95 % intervals over utterances)")
    for corpus, panel in zip(corpora, axes):
        bars = read_intervals(results, "first_book", (HASRD, RVQ), corpus, "wer")
        draw_bars(panel, bars, corpus, "WER in %")
        for run in results.find(table="bootstrap", row=FIRST_BOOK, corpus=corpus):
            found = comparison_of(run)
            panel.set_xlabel(f"change {found.value:+.1f} % ({found.low:+.1f} to {found.high:+.1f})", fontsize=9)
    save_figure(figure, path)


def read_intervals(
    results: Results, table: str, rows: tuple[str, ...], corpus: str, metric: str
) -> dict[str, tuple[float, float, float]]:
    """By row a figure and the ends of its interval; the figure itself where there is none. What is missing is left."""
    bars = {}
    for row in rows:
        names = (metric, f"{metric}_low", f"{metric}_high")
        value, low, high = (results.seeds_mean(name, table=table, row=row, corpus=corpus) for name in names)
        if value is not None:
            bars[row] = (value, value if low is None else low, value if high is None else high)
    return bars


def draw_bars(panel: Axes, bars: Mapping[str, tuple[float, float, float]], title: str, up: str) -> None:
    """A bar for each row, with its number and its interval."""
    for place, (value, low, high) in enumerate(bars.values()):
        panel.bar(place, value, 0.7, color=COLOURS[place])
        panel.vlines(place, low, high, color="black", linewidth=1.2)
        style = dict(ha="center", va="bottom", fontsize=8)
        number = f"{value:.2f}" if value >= 1 else f"{value:.3f}"
        panel.annotate(number, (place, max(high, 0.0)), (0, 2), textcoords="offset points", **style)
    panel.set_xticks(range(len(bars)), list(bars), fontsize=9)
    panel.axhline(0.0, color="black", linewidth=0.8)
    panel.set_title(title, loc="left", fontsize=10)
    panel.set_ylabel(up)
    panel.margins(y=0.12)
    panel.spines[["top", "right"]].set_visible(False)


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
    panel.set_ylim(0.0, 1.06 * panel.dataLim.ymax)  # with room for the highest marker
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.spines[["top", "right"]].set_visible(False)
    num_columns = 1 if len(panel.get_legend_handles_labels()[0]) <= 3 else 2  # all curves are above it
    panel.legend(loc="lower left", ncols=num_columns, frameon=False, fontsize=8)
