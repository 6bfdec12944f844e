"""The generated sections of HASRD's card."""

from collections.abc import Callable

from card_tables import NOTHING, benchmarks, corpora_of, goal_table, markdown_table, option, preset_table, result_table
from fit_semantic_codebook import PRESETS as FIT_PRESETS
from fit_semantic_codebook import RecipeArguments as FitArguments
from pretrain_best_rq import PRESETS as BEST_RQ_PRESETS
from pretrain_best_rq import RecipeArguments as BestRQRecipeArguments
from tables_hasrd import (
    BEST,
    CHOSEN,
    COLUMNS,
    FBANK,
    HASRD,
    LAYERS,
    METHOD,
    NORMALIZATIONS,
    PAPER_TABLE3,
    PAPER_TABLE4,
    PARTS,
    RVQ,
    TABLE4_COLUMNS,
    TABLES,
    comparison_of,
    distances_by_books,
    encoder_name,
    goals,
    layer_name,
    paper_figures,
    with_table4,
)
from train_hasrd import PRESETS as CODEC_PRESETS
from train_hasrd import RecipeArguments as CodecRecipeArguments
from train_hasrd_ctc import PRESETS as PROBE_PRESETS
from train_hasrd_ctc import RecipeArguments as ProbeRecipeArguments

from clearspeech.trainers.results import Results
from clearspeech.trainers.trainer_best_rq import BestRQTrainingArguments
from clearspeech.trainers.trainer_hasrd import HasrdTrainingArguments
from clearspeech.trainers.trainer_hasrd_ctc import HasrdCTCTrainingArguments

HOUSEKEEPING = (
    "logging_steps save_steps save_total_limit per_device_eval_batch_size use_cpu max_validation_rows".split()
)
RECIPES = {  # presets, and the dataclasses of their arguments
    "pretrain_best_rq.py": (BEST_RQ_PRESETS, (BestRQRecipeArguments, BestRQTrainingArguments)),
    "fit_semantic_codebook.py": (FIT_PRESETS, (FitArguments,)),
    "train_hasrd.py": (CODEC_PRESETS, (CodecRecipeArguments, HasrdTrainingArguments)),
    "train_hasrd_ctc.py": (PROBE_PRESETS, (ProbeRecipeArguments, HasrdCTCTrainingArguments)),
}
# as printed, of audio: kbps, parameters in M, memory, inference, mel and STFT distance, ViSQOL
PAPER_TABLE1 = {
    "DAC, segments of 0.4 s": ("2.79", "76.6", "", "", "0.75", "1.55", "4.22"),
    "DAC (baseline)": ("2.79", "76.6", "", "", "0.66", "1.45", "4.45"),
    "DAC+fbank": ("2.79", "68.0", "-25%", "x2", "0.66", "1.50", "4.50"),
    "DAC+fbank+SepConv": ("2.79", "48.0", "-25%", "x3", "0.68", "1.52", "4.45"),
    "SpeechTokenizer (Table 2)": ("6.0", "103.7", "", "", "0.76", "1.58", "4.26"),
    "HASRD (BestRQ+) (Table 2)": ("3.1", "99.5", "", "", "0.64", "1.48", "4.50"),
    "HASRD (HuBERT) (Table 2)": ("4.5", "131.7", "", "", "0.76", "1.57", "4.30"),
}


def setting(results: Results) -> str:
    """Sizes, data, steps and machine of the measured models."""
    found = {
        name: results.find(table=table, row=row)
        for name, table, row in (
            ("BestRQ+", "pretraining", encoder_name(CHOSEN)),
            (HASRD, "codec", HASRD),
            (RVQ, "codec", RVQ),
            ("recognizer", "table3", FBANK),
        )
    }
    shown = {name: runs[0] for name, runs in found.items() if runs}
    if not shown:
        return NOTHING
    machine, lines = results.environment, []
    for name, run in shown.items():
        corpora = ", ".join(f"`{source}`" for source in option(run, "--dataset"))
        lines.append(f"* *{name}*: {run.parameters / 1e6:.2f} M parameters, trained on {corpora}")
    commands = "\n".join(run.command for run in shown.values())
    return (
        "\n".join(lines) + f"\n\nMeasured with torch {machine['torch']}, transformers {machine['transformers']}, "
        f"{machine['device']}; one training of each. Steps: see `mini` below, unless a command names others. The "
        "paper's: 62 to 142 M parameters, 960 hours of LibriSpeech. Their figures cannot be compared with ours; what "
        f"can is the order of rows, and where ours is another the text says so.\n\n```\n{commands}\n```\n"
    )


def presets() -> str:
    """What `--preset mini` of each recipe sets and the model depends on, beside the value without it."""
    return "\n".join(
        f"`recipes/{name}`:\n\n{preset_table(of_recipe, arguments, HOUSEKEEPING)}"
        for name, (of_recipe, arguments) in RECIPES.items()
    )


def table(results: Results, name: str, columns: dict[str, str], title: str | None = None) -> str:
    """One table on each corpus that it was measured on, of columns that have a figure. title: of its picture."""
    shown, text = with_table4(results), ""
    for corpus in corpora_of(shown, (name,)):
        found = {metric for run in shown.find(table=name, corpus=corpus) for metric in run.metrics}
        titles = {metric: title for metric, title in columns.items() if metric in found}
        entries = [(name, row) for row in TABLES[name]]
        text += f"`{corpus}`, test split:\n\n{result_table(shown, corpus, entries, titles, (), paper_figures)}\n"
    return text + (picture(title, name).lstrip() if title else "") if text else NOTHING


def picture(title: str, name: str) -> str:
    """A figure of `recipes/reproduce_hasrd.py`."""
    return f"\n![{title}](figures/{METHOD}_{name}.png)\n"


def layers(results: Results) -> str:
    """WER on test and on validation, by which the layer is chosen, of each layer."""
    text = ""
    for corpus in corpora_of(results, ("layers",)):
        lines = []
        for layer in LAYERS:
            rows = [dict(table="layers", row=layer_name(each, layer), corpus=corpus) for each in NORMALIZATIONS]
            wers = [results.seeds_mean(name, **row) for row in rows for name in ("wer", "validation/wer")]
            lines.append([f"layer {layer}", *["" if wer is None else f"{wer:.2f}" for wer in wers]])
        header = ["", *[f"{each}, {split}" for each in NORMALIZATIONS for split in ("test", "validation")]]
        text += f"`{corpus}`, WER in percent:\n\n{markdown_table(header, lines)}\n"
    return text + picture("WER over the layer", "layers").lstrip() if text else NOTHING


def pretraining(results: Results) -> str:
    """BEST-RQ's loss on validation, beside what no guess without context gets below."""
    lines = [
        [run.row, *[f"{run.metrics[name]:.2f}" for name in ("loss", "target_entropy", "accuracy")]]
        for run in results.find(table="pretraining")
    ]
    header = ["", "loss in nats", "entropy of the labels in nats", "accuracy in %"]
    return markdown_table(header, lines) if lines else NOTHING


def books(results: Results) -> str:
    """Distances from the recording by the number of books."""
    text = ""
    for corpus in corpora_of(results, ("codec",)):
        runs, lines = results.find(table="codec", corpus=corpus, seed=0), []
        for metric, title in (("mel_distance", "mel distance"), ("stft_distance", "STFT distance")):
            lines += [[f"{run.row}, {title}", *[f"{v:.3f}" for v in distances_by_books(run, metric)]] for run in runs]
        header = ["books", *map(str, range(1, len(lines[0])))]
        text += f"`{corpus}`, test split:\n\n{markdown_table(header, lines)}\n"
    return text + picture("Distances over the number of books", "books").lstrip() if text else NOTHING


def voices(results: Results) -> str:
    """What a similarity of voices means: that of recordings of one and of two speakers."""
    names = {"similarity_same_speaker": "one speaker", "similarity_other_speaker": "two speakers"}
    lines = [
        [f"`{run.corpus}`", *[f"{run.metrics[name]:.2f}" for name in names], f"{run.metrics['similarity_error']:.1f}"]
        for run in results.find(table="codec", row=HASRD, seed=0)
        if "similarity_error" in run.metrics
    ]
    return markdown_table(["recordings of", *names.values(), "equal error rate in %"], lines) if lines else NOTHING


def resynthesis(results: Results) -> str:
    """What the recognizer of recordings reads in audio from books."""
    text = ""
    for corpus in corpora_of(results, ("resynthesis",)):
        runs = results.find(table="table3", row=FBANK, corpus=corpus)
        lines = [["recording", *[f"{runs[0].metrics[name]:.2f}" for name in ("wer", "cer")]]] if runs else []
        for run in results.find(table="resynthesis", corpus=corpus):
            name = run.row if run.row.startswith(RVQ) else f"{HASRD}, {run.row}"
            lines.append([name, *[f"{run.metrics[each]:.2f}" for each in ("wer", "cer")]])
        text += f"`{corpus}`, test split:\n\n{markdown_table(['', 'WER', 'CER'], lines)}\n"
    return text or NOTHING


def comparisons(results: Results) -> str:
    """Changes of the WER, and what their intervals leave open."""
    lines = []
    for run in results.find(table="bootstrap"):
        found = comparison_of(run)
        verdict = "covers zero: open" if found.covers_zero else ("**worse**" if found.low > 0 else "better")
        interval = f"{found.low:+.1f} to {found.high:+.1f}"
        cells = [f"`{run.corpus}`", f"{found.value:+.1f}", interval, verdict, f"{run.metrics['utterances']:.0f}"]
        lines.append([run.row, *cells])
    header = ["", "corpus", "change in %", "95 % interval", "", "utterances"]
    return markdown_table(header, lines) if lines else NOTHING


def figure2(results: Results) -> str:
    """The weights of the layers."""
    runs = results.find(table="figure2", seed=0)
    names = [*runs[0].metrics] if runs else []
    lines = [[run.row, *[f"{run.metrics[name]:.3f}" for name in names]] for run in runs]
    return markdown_table(["", *names], lines) + picture("Weights of the layers", "figure2") if lines else NOTHING


def spectrograms(results: Results) -> str:
    """The first test utterance of each corpus and its reconstructions."""
    corpora = corpora_of(results, ("codec",))
    pictures = [
        picture(f"Spectrograms of input and reconstructions, {each}", f"spectrogram_{each}") for each in corpora
    ]
    return "".join(pictures).lstrip() or NOTHING


def paper_tables() -> str:
    """Tables 1 to 4 as printed."""
    header = ["Tables 1, 2", "kbps", "parameters in M", "memory", "inference", "mel", "STFT", "ViSQOL"]
    text = markdown_table(header, [[name, *figures] for name, figures in PAPER_TABLE1.items()])
    sides = [f"{name}, {side}" for side in ("latent", "quantized") for name in ("CER", "WER")]
    header = ["Table 3", "parameters in M", "normalization", *sides]
    text += "\n" + markdown_table(header, [[name, *figures] for name, figures in PAPER_TABLE3.items()])
    return (
        text
        + "\n"
        + markdown_table(["Table 4", "SIM", "WER"], [[name, *figures] for name, figures in PAPER_TABLE4.items()])
    )


def counts(results: Results) -> str:
    """Parameters of the full-size models and their bitrates, and the paper's figures."""
    lines = []
    for entry in results.counts:
        paper, kbps = (str(entry[name]) if name in entry else "" for name in ("paper", "paper_kbps"))
        own = f"{entry['kbps']:.2f}" if "kbps" in entry else ""
        lines.append([entry["name"], f"{entry['parameters'] / 1e6:.2f}", paper, own, kbps])
    header = ["", "parameters in M", "the paper's", "kbps", "the paper's"]
    return markdown_table(header, lines) if lines else NOTHING


def semantic_layer(results: Results) -> str:
    """Which layers are the best on validation, and which others have k-means."""
    lines = []
    for normalization in NORMALIZATIONS:
        found = {
            f"layer {run.metrics['layer']:.0f}": "the best on validation" if row == BEST else "as given, not chosen"
            for row in PARTS
            for run in results.find(table="table3", row=encoder_name(normalization, row))
            if "layer" in run.metrics
        }
        lines += [f"{normalization} normalization: {layer}, {why}" for layer, why in found.items()]
    return f"{'; '.join(lines)}.\n" if lines else NOTHING


def windows(results: Results) -> str:
    """How many tokens are the same in windows and in one pass."""
    header, lines = [""], []
    for run in results.find(table="codec", seed=0):
        shares = {name: value for name, value in run.metrics.items() if name.startswith("window_agreement/")}
        if shares:
            header = max(header, ["", *[f"book {name.rpartition('_')[2]}" for name in shares]], key=len)
            seconds = f"{run.metrics['window_seconds']:.0f} s of `{run.corpus}`"
            lines.append([f"{run.row}, {seconds}", *[f"{value:.1f}" for value in shares.values()]])
    return markdown_table(header, lines) if lines else NOTHING


def speed(results: Results) -> str:
    """Why the codecs are no faster: what an encoder could save at most, beside a decoder like DAC's."""
    measured, text = {entry["name"]: entry for entry in results.benchmarks}, ""
    for codec in ("fbank_sepconv", "fbank"):
        entries = [measured.get(f"{part}_dac_vs_{codec}") for part in ("codec", "encoder", "decoder")]
        if None not in entries:
            whole, encoder, decoder = entries
            dac, decoding = whole["seconds"]["dac"], decoder["seconds"]
            text += (
                f"\n`{codec}`, {whole['ratio']:.2f} times as fast as DAC, {whole['target']} being the target: its "
                f"encoder is {encoder['ratio']:.1f} times as fast, its decoder {decoder['ratio']:.2f} times. Decoding "
                f"takes {100 * decoding['dac decoder'] / dac:.0f} % of DAC's time, so that with this decoder and an "
                f"encoder that takes no time it would be {dac / decoding[f'{codec} decoder']:.2f} times.\n"
            )
    return text


def sections(results: Results) -> dict[str, Callable[[], str]]:
    """What the card can ask for, by name."""
    return {
        "setting": lambda: setting(results),
        "presets": presets,
        "goals": lambda: goal_table(goals(results)),
        "pretraining": lambda: pretraining(results),
        "layer": lambda: semantic_layer(results),
        "table3": lambda: table(results, "table3", COLUMNS),
        "layers": lambda: layers(results),
        "table4": lambda: table(results, "table4", TABLE4_COLUMNS, "What the books hold"),
        "books": lambda: books(results),
        "windows": lambda: windows(results),
        "voices": lambda: voices(results),
        "spectrograms": lambda: spectrograms(results),
        "resynthesis": lambda: resynthesis(results),
        "first_book": lambda: table(results, "first_book", COLUMNS, "What is read in the first book"),
        "bootstrap": lambda: comparisons(results),
        "figure2": lambda: figure2(results),
        "paper": paper_tables,
        "counts": lambda: counts(results),
        "benchmarks": lambda: benchmarks(results) + speed(results),
    }
