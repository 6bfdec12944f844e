"""
Measure a HASRD folder: how close its audio is to the input, by number of books and by kind of book.

    python recipes/evaluate_hasrd.py --model outputs/mini_hasrd --dataset ../shared/data/an4

Mel and STFT distance (Tables 1 and 2), SI-SDR and similarity of the voice (Table 4) of the audio from all books, from
the first 1, 2, ... of them, and, where there is a semantic book, from it alone and from the acoustic books alone. What
else `--measures` names needs packages of its own, see `trainers/codec_metrics.py`. Recordings are brought to the level
that the codec was trained at: no book carries loudness, and distances would count it.

Voices are compared by a linear discriminant analysis of spectra that is fitted here, on `--speaker_dataset`; or by a
speaker verification model of Transformers, `--speaker_model`; or by the paper's ECAPA-TDNN, `--speaker_model ecapa`.
`similarity_same_speaker` and `similarity_other_speaker` of the recordings themselves say what its numbers mean;
`similarity_low` and `similarity_high` are the ends of its 95 % interval over utterances.

`window_agreement/book_1` and so on: of `--long_seconds` of joined utterances, the percentage of tokens of each book
that are the same encoded in windows, as long audio is, and in one pass.

Writes `evaluation.json`, a curve over the number of books and the first utterances' spectrograms into `--output_dir`.
Two CPU cores: about a minute for ten minutes of speech and each subset of books, with a mini.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import log2
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from measured_speech import MeasuredSpeechArguments, label_sources
from torch import Tensor
from train_hasrd import check_model_type
from transformers import AutoFeatureExtractor, FeatureExtractionMixin, HfArgumentParser

from clearspeech.modeling.modeling_hasrd import HasrdModel
from clearspeech.processing.loudness import bring_to_level
from clearspeech.trainers.bootstrap import resampled_rates, to_estimate
from clearspeech.trainers.codec_losses import log_mel_spectrogram
from clearspeech.trainers.codec_metrics import ALWAYS_HERE, SAMPLING_RATE, UNITS, take_measures, zero_padded
from clearspeech.trainers.evaluation import length_batches, open_short
from clearspeech.trainers.figures import COLOURS, save_figure
from clearspeech.trainers.results import write_atomically
from clearspeech.trainers.speaker_similarity import (
    MIN_SPEAKERS,
    EcapaEncoder,
    LdaSpeakerEncoder,
    SpeakerEncoder,
    XVectorEncoder,
    cosine,
    rows_of_known_speakers,
    similarity_anchors,
)

ALL = "all"
SIMILARITY = "similarity"
Books = str | int | tuple[int, ...]  # as `HasrdModel.decode` takes them
WINDOW, NUM_MELS = 1024, 80  # of the pictures


@dataclass
class EvaluationArguments(MeasuredSpeechArguments):
    model: str = field(metadata={"help": "Folder or Hub id of a HASRD with its feature extractor."})
    measures: list[str] = field(
        default_factory=lambda: [*ALWAYS_HERE], metadata={"help": f"Of {', '.join(UNITS)}; the first three run here."}
    )
    speaker_model: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a model for speaker verification, or ecapa."}
    )
    speaker_dataset: list[str] | None = field(
        default=None,
        metadata={"help": "Corpora whose training speakers voices are compared by; --dataset when not given."},
    )
    long_seconds: float = field(
        default=120.0, metadata={"help": "Join utterances to so much to compare windows with one pass; 0 for not."}
    )
    num_spectrograms: int = field(default=3, metadata={"help": "Draw the first so many utterances of each corpus."})
    batch_size: int = field(default=8, metadata={"help": "Utterances at once."})


def load_model(folder: str, device: str) -> tuple[HasrdModel, FeatureExtractionMixin]:
    """A codec and its feature extractor. Raises ValueError for a folder of another model."""
    check_model_type(folder, "recipes/train_hasrd.py")
    return HasrdModel.from_pretrained(folder).eval().to(device), AutoFeatureExtractor.from_pretrained(folder)


def book_subsets(model: HasrdModel) -> dict[str, tuple[int, ...]]:
    """By name the books that are listened to: `all`, `semantic` and `acoustic`, and the first so many."""
    num_books, subsets = model.config.num_books, {ALL: tuple(range(model.config.num_books))}
    if model.config.num_semantic_codes and num_books > 1:
        subsets |= {"semantic": (0,), "acoustic": tuple(range(1, num_books))}
    return subsets | {f"first_{number}": tuple(range(number)) for number in range(1, num_books)}


def bitrates(model: HasrdModel) -> dict[str, float]:
    """kbps of each of `book_subsets`."""
    config = model.config
    return {
        name: config.frame_rate * sum(log2(config.book_sizes[book]) for book in books) / 1000
        for name, books in book_subsets(model).items()
    }


def reconstruct(
    model: HasrdModel,
    extractor: FeatureExtractionMixin,
    waveforms: Sequence[np.ndarray],
    subsets: Iterable[Books],
    batch_size: int = 8,
) -> Iterator[tuple[list[int], dict[Books, list[Tensor]]]]:
    """
    Batch by batch, the shortest first: positions in `waveforms`, and what comes back from each subset of books,
    `(samples,)` at 16 kHz of the inputs' lengths. A batch is encoded once, and each different subset decoded once.
    """
    subsets = list(dict.fromkeys(subsets))
    for rows in length_batches(waveforms, batch_size, "reconstruct"):
        batch = [waveforms[row] for row in rows]
        inputs = extractor(
            batch,
            sampling_rate=extractor.sampling_rate,
            padding="longest",
            return_attention_mask=True,
            return_tensors="pt",
        )
        encoded = model.encode(**inputs.to(model.device))
        lengths = [len(each) for each in batch]
        made = {}
        for books in subsets:
            decoded = model.decode(encoded.audio_codes, encoded.attention_mask, books=books, num_samples=lengths)
            made[books] = [audio[:length] for audio, length in zip(decoded.audio_values.cpu(), lengths)]
        yield rows, made


@torch.no_grad()
def window_agreement(
    model: HasrdModel, extractor: FeatureExtractionMixin, waveforms: Sequence[np.ndarray], seconds: float
) -> dict[str, float]:
    """
    The percentage of each book's tokens that are the same in windows and in one pass, of utterances `(samples,)` that
    are joined to so many seconds, and how many these were; nothing where one window holds them all.
    """
    num_samples, ends = round(seconds * SAMPLING_RATE), np.cumsum([len(each) for each in waveforms])
    joined = np.concatenate(waveforms[: int(np.searchsorted(ends, num_samples)) + 1])[:num_samples]
    if len(joined) <= model.config.max_source_tokens * model.config.samples_per_token:
        return {}
    inputs = extractor(joined, sampling_rate=SAMPLING_RATE, return_attention_mask=True, return_tensors="pt")
    inputs = inputs.to(model.device)
    in_windows, at_once = model.encode(**inputs).audio_codes, model.quantize(*model.latents(**inputs)).codes
    shares = (in_windows == at_once).double().mean(dim=(0, 2)).tolist()
    agreement = {f"window_agreement/book_{book}": 100 * share for book, share in enumerate(shares, start=1)}
    return agreement | {"window_seconds": len(joined) / SAMPLING_RATE}


def build_speaker_encoder(args: EvaluationArguments) -> SpeakerEncoder | None:
    """What compares voices; None, with a line that says so, where no speakers are known to fit it on."""
    if args.speaker_model is not None:
        if args.speaker_model == "ecapa":
            return EcapaEncoder(device=args.device)
        return XVectorEncoder(args.speaker_model, args.device)
    waveforms, speakers, corpora = [], [], []
    for source in args.speaker_dataset or args.dataset:
        corpus = open_short(source, "train", args.max_seconds, None)
        waveforms += [np.asarray(row["audio"], dtype=np.float32) for row in corpus]
        speakers += corpus.select_columns("speaker")["speaker"]
        corpora += [source] * len(corpus)
    num_speakers = len({(corpora[row], speakers[row]) for row in rows_of_known_speakers(speakers, corpora)})
    if num_speakers < MIN_SPEAKERS:
        print(
            f"Voices are not compared: {num_speakers} known speakers in {len(speakers)} utterances; give others as "
            "--speaker_dataset, or a --speaker_model."
        )
        return None
    return LdaSpeakerEncoder.fit(waveforms, speakers, corpora)


def interval(counts: Sequence[float], totals: Sequence[float]) -> tuple[float, float]:
    """The ends of the 95 % interval of sum(counts) / sum(totals) over utterances, by a bootstrap."""
    rates = resampled_rates(np.asarray(counts), np.asarray(totals), seed=0)
    found = to_estimate(sum(counts) / sum(totals), rates, confidence=0.95)
    return found.low, found.high


def summarize(values: list[dict[str, float]], suffix: str) -> dict[str, float]:
    """Means over utterances of the measures of one subset of books, and the similarity's interval."""
    figures = {f"{name}{suffix}": fmean(each[name] for each in values) for name in values[0]}
    if SIMILARITY in values[0]:
        low, high = interval([each[SIMILARITY] for each in values], [1] * len(values))
        figures |= {f"{SIMILARITY}_low{suffix}": low, f"{SIMILARITY}_high{suffix}": high}
    return figures


def measure(
    model: HasrdModel,
    extractor: FeatureExtractionMixin,
    corpus: Dataset,
    args: EvaluationArguments,
    encoder: SpeakerEncoder | None,
) -> tuple[dict[str, float], list[dict[str, Tensor]]]:
    """
    Figures of one corpus by name and subset of books (`mel_distance`, `mel_distance/first_2`), and of the utterances
    to be drawn the waveforms by subset, the input among them.
    """
    targets = [bring_to_level(np.asarray(row["audio"], dtype=np.float32)) for row in corpus]
    waveforms, subsets = [each.numpy() for each in targets], book_subsets(model)
    if isinstance(encoder, LdaSpeakerEncoder):
        encoder = encoder.centred(targets)
    voices = [] if encoder is None else [encoder(each) for each in targets]
    values, drawn = {}, [{} for _ in targets[: args.num_spectrograms]]
    for rows, made in reconstruct(model, extractor, waveforms, subsets.values(), args.batch_size):
        for books, of_subset in made.items():
            for row, audio in zip(rows, of_subset, strict=True):
                found = take_measures(audio, targets[row], args.measures)
                if voices:
                    found[SIMILARITY] = cosine(encoder(audio), voices[row])
                values.setdefault(books, []).append(found)
                if row < len(drawn):
                    drawn[row][books] = audio
    figures = {}
    for name, books in subsets.items():
        figures |= summarize(values[books], "" if name == ALL else f"/{name}")
    speakers = list(corpus.select_columns("speaker")["speaker"])
    if voices and "" not in speakers and 1 < len(set(speakers)) < len(speakers):
        figures |= similarity_anchors(voices, speakers)
    pictures = [
        {"input": target} | {name: each[books] for name, books in subsets.items()}
        for target, each in zip(targets, drawn)
    ]
    return figures | window_agreement(model, extractor, waveforms, args.long_seconds), pictures


def draw_spectrograms(waveforms: dict[str, Tensor], path: Path, title: str):
    """Log mel spectrograms of the input and its reconstructions, one above the other, in one scale of colours."""
    spectrograms = {
        name: 20 * log_mel_spectrogram(zero_padded(each[None], WINDOW), WINDOW, NUM_MELS)[0]
        for name, each in waveforms.items()
    }
    highest = float(spectrograms["input"].max())
    seconds = len(waveforms["input"]) / 16000
    figure = Figure(figsize=(9, 1.8 * len(spectrograms)), layout="constrained")
    for axes, (name, spectrogram) in zip(
        figure.subplots(len(spectrograms), sharex=True, squeeze=False)[:, 0], spectrograms.items()
    ):
        options = dict(origin="lower", aspect="auto", cmap="magma", extent=(0, seconds, 0, NUM_MELS))
        picture = axes.imshow(spectrogram.numpy(), vmin=highest - 70, vmax=highest, **options)
        axes.set_ylabel(f"{name}\nmel bin")
        figure.colorbar(picture, ax=axes, label="dB")
    axes.set_xlabel("seconds")
    figure.suptitle(title)
    save_figure(figure, path)


def draw_curve(results: dict[str, dict[str, float]], num_books: int, path: Path):
    """Each measure over the number of books, one line for each corpus."""
    names = [name for name in (*UNITS, SIMILARITY) if f"{name}/first_1" in next(iter(results.values()))]
    figure = Figure(figsize=(4 * len(names), 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        for colour, (label, metrics) in zip(COLOURS, results.items()):
            values = [metrics[f"{name}/first_{number}"] for number in range(1, num_books)] + [metrics[name]]
            axes.plot(range(1, num_books + 1), values, marker="o", color=colour, label=label)
        axes.set_xlabel("books")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel(" / ".join(part for part in (name, UNITS.get(name)) if part))
    axes.legend()
    save_figure(figure, path)


def format_table(results: dict[str, dict[str, float]]) -> str:
    """One column per corpus, one line per figure and subset of books."""
    lines = [" " * 36 + "".join(f"{corpus:>20}" for corpus in results)]
    for name in dict.fromkeys(name for metrics in results.values() for name in metrics):
        cells = [f"{metrics[name]:.3f}" if name in metrics else "" for metrics in results.values()]
        lines.append(f"{name:36}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    (args,) = HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses(arguments)
    sources = label_sources(args.dataset)
    model, extractor = load_model(args.model, args.device)
    encoder = build_speaker_encoder(args)
    folder, results = args.folder, {}
    shown = [
        name for name in ("input", ALL, "semantic", "acoustic", "first_1") if name in ("input", *book_subsets(model))
    ]
    if "semantic" in shown and "first_1" in shown:
        shown.remove("first_1")  # the same
    for label, source in sources.items():
        corpus = args.load(source)
        results[label], drawn = measure(model, extractor, corpus, args, encoder)
        for row, waveforms in enumerate(drawn):
            chosen = {name: waveforms[name] for name in shown}
            draw_spectrograms(
                chosen, folder / f"spectrogram_{label}_{row}.png", f"{label}, {args.split}, utterance {row}"
            )
    content = {
        "model": args.model,
        "parameters": model.num_parameters(),
        "split": args.split,
        "bitrates": bitrates(model),
        "speaker_model": args.speaker_model or ("lda" if encoder is not None else None),
        "metrics": results,
    }
    if model.config.num_books > 1:
        draw_curve(results, model.config.num_books, folder / "books.png")
    write_atomically(folder / "evaluation.json", json.dumps(content, indent=1) + "\n")  # last: then all is there
    print(format_table(results))
    return results


if __name__ == "__main__":
    main()
