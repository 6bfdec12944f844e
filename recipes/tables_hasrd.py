"""
HASRD's tables and goals, made of its results: the names of the rows, the paper's figures, the layer that is best on
validation. For `recipes/reproduce_hasrd.py`, which measures them, `recipes/figures_hasrd.py` and
`recipes/card_hasrd.py`.
"""

from collections.abc import Iterator
from dataclasses import replace

from pretrain_best_rq import PRESETS as BEST_RQ_PRESETS
from table_runs import Goal, format_goals, format_table

from clearspeech.trainers.bootstrap import Estimate
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
PARTS = (BEST, *[f"layer {layer}" for layer in LAYERS], KMEANS)  # numbers: k-means' layers that are not the best
TABLES = {
    "table3": (
        FBANK,
        *[encoder_name(each, part) for each in reversed(NORMALIZATIONS) for part in PARTS],
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
# as printed, LibriSpeech's test-clean: parameters in M, normalization, CER and WER of latents, of k-means or books
PAPER_TABLE3 = {
    "Fbank": ("", "", "11.8", "35.8", "", ""),
    "DAC": ("76.6", "", "14.6", "43.8", "52.6", "92.6"),
    "BestRQ (baseline)": ("106.0", "global", "4.9", "17.3", "12.8", "38.3"),
    "BestRQ+, global": ("62.0", "global", "3.7", "13.2", "12.6", "37.4"),
    "BestRQ+, sentence": ("62.0", "sentence", "3.6", "12.6", "9.3", "28.0"),
    "SpeechTokenizer": ("103.7", "", "6.5", "21.5", "7.1", "23.0"),
    "HASRD (BestRQ+)": ("141.6", "sentence", "3.4", "12.0", "6.4", "21.0"),
    "HASRD (HuBERT)": ("131.7", "", "2.1", "7.4", "3.3", "11.3"),
}
PAPER_TABLE4 = {COMBINED: ("0.92", "24.2"), ACOUSTIC: ("0.67", "70.2"), SEMANTIC: ("0.15", "21.0")}  # SIM, WER
LATENT, QUANTIZED = slice(2, 4), slice(4, 6)  # of the paper's Table 3, CER and WER
PAPER_PLACES = {FBANK: ("Fbank", LATENT)} | {  # by our row in Table 3
    encoder_name(each, part): (encoder_name(each), place)
    for each in NORMALIZATIONS
    for part, place in ((BEST, LATENT), (KMEANS, QUANTIZED))
}
# by name: the rows whose trainings are compared, the first being the baseline, and where the second one stands
FIRST_BOOK = "semantic book against the first of RVQ alone"
COMPARISONS = {
    FIRST_BOOK: (
        (f"{RVQ}, first book", encoder_name(CHOSEN, KMEANS)),
        ("first_book", HASRD),
    ),
    "semantic tokens against acoustic ones": ((ACOUSTIC, encoder_name(CHOSEN, KMEANS)), ("table4", SEMANTIC)),
    "k-means, sentence against global normalization": (
        (encoder_name("global", KMEANS), encoder_name("sentence", KMEANS)),
        ("table3", encoder_name("sentence", KMEANS)),
    ),
}
# what was to be reached in sizes: Table 1's to the digits that it prints; and in costs, by the benchmark's name
SIZE_LIMITS = {"DAC (baseline)": 0.1, "DAC+fbank": 0.1, "DAC+fbank+SepConv": 0.1}
SIZE_LIMITS |= {"BestRQ+": 3.0, "HASRD (BestRQ+)": 3.0, "HASRD (HuBERT)": 3.0}
COSTS = {
    "codec_dac_vs_fbank_sepconv": "fbank + SepConv: so many times as fast as DAC, on a CPU",
    "codec_dac_vs_fbank": "fbank: so many times as fast as DAC, on a CPU",
    "training_memory_fbank_sepconv_vs_dac": "fbank + SepConv: memory in training, DAC's being 1",
    "training_memory_fbank_vs_dac": "fbank: memory in training, DAC's being 1",
}
BOUNDS = {"at least": ">=", "at most": "<="}


def paper_figures(table: str, row: str) -> dict[str, float]:
    """The paper's figures for a row under our metric names, on test-clean; empty where it prints none."""
    if table == "table3" and row in PAPER_PLACES:
        printed, place = PAPER_PLACES[row]
        return dict(zip(("cer", "wer"), map(float, PAPER_TABLE3[printed][place])))
    return dict(zip(("similarity", "wer"), map(float, PAPER_TABLE4[row]))) if table == "table4" else {}


def corpora_in(results: Results) -> list[str]:
    """What was measured on; not what was trained on, which Fig. 2's rows name."""
    return list(dict.fromkeys(run.corpus for run in results.runs if run.split == "test"))


def best_layer(results: Results, normalization: str, corpora: list[str]) -> int | None:
    """The layer with the lowest WER on validation, mean over the corpora; None unless all were measured on all."""
    errors = {}
    for layer in LAYERS:
        row = dict(table="layers", row=layer_name(normalization, layer))
        wers = [results.seeds_mean("validation/wer", **row, corpus=corpus) for corpus in corpora]
        if not wers or None in wers:
            return None
        errors[layer] = sum(wers) / len(wers)
    return min(errors, key=errors.get)


def with_table4(results: Results) -> Results:
    """
    The results with Table 4's rows whole: beside the WER of the tokens' recognizer, the voice's similarity and the
    distances of the audio, and its WER; with the ends of their intervals as `wer_low` and `wer_high` and so on.
    """
    runs = [run for run in results.runs if run.table != "table4"]
    ends = ("", "_low", "_high")
    of_audio = (*[f"similarity{end}" for end in ends], "mel_distance", "stft_distance")
    for codec in results.find(table="codec", row=HASRD):
        for row, books in BOOKS.items():
            suffix, place = "" if books == "all" else f"/{books}", dict(row=row, corpus=codec.corpus)
            found = {name: codec.metrics.get(f"{name}{suffix}") for name in of_audio}
            found["cer"] = results.seeds_mean("cer", table="table4", **place)
            for end in ends:
                found[f"wer{end}"] = results.seeds_mean(f"wer{end}", table="table4", **place)
                found[f"resynthesis_wer{end}"] = results.seeds_mean(f"wer{end}", table="resynthesis", **place)
            figures = {name: value for name, value in found.items() if value is not None}
            runs += [replace(codec, table="table4", row=row, metrics=figures)] if figures else []
    return replace(results, runs=runs)


def goals(results: Results) -> Iterator[Goal]:
    """What was to be reached, as far as it is measured: sizes and costs, then figures, means over seeds."""
    yield from size_goals(results)
    yield from cost_goals(results)
    whole = with_table4(results)
    best, kmeans = ([encoder_name(each, part) for each in NORMALIZATIONS] for part in (BEST, KMEANS))
    same = [layer for layer in LAYERS if whole.find(table="table3", row=layer_name("global", layer))]
    asked = [
        ("WER of the best layer, that of Fbank", "wer", "<", "table3", best[0], FBANK),
        ("best layer: WER with sentence normalization, with global", "wer", "<", "table3", *best),
        *[
            (f"layer {layer}: WER with sentence normalization, with global", "wer", "<", "layers")
            + tuple(layer_name(each, layer) for each in NORMALIZATIONS)
            for layer in same
        ],
        ("k-means: WER with sentence normalization, with global", "wer", "<", "table3", *kmeans),
        ("WER of semantic tokens, of acoustic ones", "wer", "<", "table4", SEMANTIC, ACOUSTIC),
        ("WER of semantic resynthesis, of acoustic", "resynthesis_wer", "<", "table4", SEMANTIC, ACOUSTIC),
        ("similarity of acoustic resynthesis, of semantic", "similarity", ">", "table4", ACOUSTIC, SEMANTIC),
        ("mel distance of all books, of the semantic alone", "mel_distance", "<", "table4", COMBINED, SEMANTIC),
        ("WER of the semantic book, of the first book of RVQ alone", "wer", "<", "first_book", HASRD, RVQ),
    ]
    for corpus in corpora_in(results):
        for text, metric, relation, table, *rows in asked:
            ours, limit = (whole.seeds_mean(metric, table=table, row=row, corpus=corpus) for row in rows)
            if ours is not None and limit is not None:
                yield Goal(text, corpus, ours, relation, limit)


def size_goals(results: Results) -> Iterator[Goal]:
    """Sizes of the full-size models, off the paper's in percent."""
    counts = {entry["name"]: entry for entry in results.counts}
    for name, limit in SIZE_LIMITS.items():
        if name in counts:
            paper = counts[name]["paper"]
            off = 100 * abs(counts[name]["parameters"] / 1e6 / paper - 1)
            yield Goal(f"size of {name}, off the paper's {paper} M by %", "no audio", off, "<=", limit)


def cost_goals(results: Results) -> Iterator[Goal]:
    """Speed and memory of the full-size codecs, of those benchmarks that have a target."""
    benchmarks = {entry["name"]: entry for entry in results.benchmarks}
    for name, text in COSTS.items():
        if name in benchmarks:
            bound, _, limit = benchmarks[name]["target"].rpartition(" ")
            yield Goal(text, "noise", benchmarks[name]["ratio"], BOUNDS[bound], float(limit))


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
