"""
Measure a recognizer of recipes/train_hasrd_ctc.py: WER and CER on speech, or on what a codec has made of it.

    python recipes/evaluate_hasrd_ctc.py --model outputs/mini_hasrd_ctc \\
        --dataset digit_strings:../shared/data/spoken_digits ../shared/data/an4

Table 3's figures are those of recognizers of several representations. Table 4's are one recognizer's, of audio that a
codec has encoded and decoded, from all of its books and from some (here the recognizer reads `features` or a layer):

    python recipes/evaluate_hasrd_ctc.py --model outputs/mini_ctc --dataset ../shared/data/an4 \\
        --resynthesis outputs/mini_hasrd --books all acoustic semantic

Writes `evaluation.json`, with `wer` and `cer` in percent, or `wer/semantic` and so on, `wer_low` and `wer_high`, the
ends of the 95 % interval over utterances, the weights of the layers where they were learned (Fig. 2), and
`evaluation_utterances.json`, with each utterance's word errors, into `--output_dir`: what `trainers/bootstrap.py`
compares two models with. Two CPU cores, mini: less than a minute for ten minutes of speech, and about another for each
subset of books.
"""

import json
from dataclasses import asdict, dataclass, field

import numpy as np
from datasets import Dataset
from evaluate_factored_asr import transcribe
from evaluate_hasrd import format_table, interval, reconstruct
from evaluate_hasrd import load_model as load_codec
from measured_speech import MeasuredSpeechArguments, label_sources
from transformers import AutoConfig, HfArgumentParser

from clearspeech.modeling.modeling_hasrd_ctc import HasrdForCTC
from clearspeech.processing.loudness import bring_to_level
from clearspeech.processing.perturbation import utterance_seed
from clearspeech.processing.processing_factored_asr import FactoredASRProcessor
from clearspeech.trainers.bootstrap import WordErrors, count_word_errors
from clearspeech.trainers.metrics import CharacterErrorRate, WordErrorRate
from clearspeech.trainers.results import write_atomically

RECORDING = "recording"  # what is recognized without a codec


@dataclass
class EvaluationArguments(MeasuredSpeechArguments):
    model: str = field(metadata={"help": "Folder or Hub id of a recognizer of recipes/train_hasrd_ctc.py."})
    resynthesis: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a HASRD that the speech goes through first."}
    )
    books: list[str] = field(
        default_factory=lambda: ["all"],
        metadata={"help": "Of --resynthesis: all, semantic, acoustic, or how many of the first; each is measured."},
    )

    def __post_init__(self):
        if self.resynthesis is None and self.books != ["all"]:
            raise ValueError(f"--books {' '.join(self.books)} are a codec's: give its folder as --resynthesis.")


def load_model(folder: str, device: str) -> tuple[HasrdForCTC, FactoredASRProcessor]:
    """A recognizer and its processor. Raises ValueError for a folder of another model."""
    model_type = AutoConfig.from_pretrained(folder).model_type
    if model_type != "hasrd_ctc":
        raise ValueError(f"{folder} holds a {model_type!r} model; give a folder of recipes/train_hasrd_ctc.py.")
    return HasrdForCTC.from_pretrained(folder).eval().to(device), FactoredASRProcessor.from_pretrained(folder)


def recognize(
    model: HasrdForCTC, processor: FactoredASRProcessor, waveforms: list[np.ndarray], args: EvaluationArguments
) -> dict[str, list[str]]:
    """Transcripts by name: of the waveforms `(samples,)` as they are, or from each subset of a codec's books."""
    if args.resynthesis is None:
        return {RECORDING: transcribe(model, processor, waveforms, args.batch_size)}
    codec, extractor = load_codec(args.resynthesis, args.device)
    subsets = {name: int(name) if name.isdigit() else name for name in args.books}
    texts = {name: [""] * len(waveforms) for name in subsets}
    levelled = [bring_to_level(each).numpy() for each in waveforms]  # as the codec was trained
    for rows, made in reconstruct(codec, extractor, levelled, subsets.values()):
        for name, books in subsets.items():
            heard = transcribe(model, processor, [each.numpy() for each in made[books]], args.batch_size)
            for row, text in zip(rows, heard, strict=True):
                texts[name][row] = text
    return texts


def measure(
    model: HasrdForCTC, processor: FactoredASRProcessor, corpus: Dataset, args: EvaluationArguments
) -> tuple[dict[str, float], dict[str, WordErrors]]:
    """Rates of error of one corpus by name and books, and word errors of each utterance by books."""
    waveforms = [np.array(row["audio"], dtype=np.float32) for row in corpus]
    references, seeds = list(corpus.select_columns("text")["text"]), [utterance_seed(each) for each in waveforms]
    metrics, errors = {}, {}
    for name, texts in recognize(model, processor, waveforms, args).items():
        figures = WordErrorRate().compute(predictions=texts, references=references)
        figures |= CharacterErrorRate().compute(predictions=texts, references=references)
        errors[name] = count_word_errors(seeds, texts, references)
        low, high = interval(errors[name].errors, errors[name].words)
        figures |= {"wer_low": 100 * low, "wer_high": 100 * high}
        metrics |= {rate if name == RECORDING else f"{rate}/{name}": value for rate, value in figures.items()}
    return metrics, errors


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    (args,) = HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses(arguments)
    sources = label_sources(args.dataset)
    model, processor = load_model(args.model, args.device)
    folder = args.folder
    results, errors = {}, {}
    for label, source in sources.items():
        corpus = args.load(source)
        results[label], errors[label] = measure(model, processor, corpus, args)
    config, shares = model.config, model.layer_shares
    content = {
        "model": args.model,
        "parameters": model.num_parameters(),
        "representation": config.representation,
        "layer": config.layer,
        "books": config.books,
        "layer_weights": None if shares is None else shares.tolist(),
        "resynthesis": args.resynthesis,
        "split": args.split,
        "metrics": results,
    }
    by_utterance = {
        label: {name: asdict(each) for name, each in of_corpus.items()} for label, of_corpus in errors.items()
    }
    write_atomically(folder / "evaluation_utterances.json", json.dumps(by_utterance) + "\n")
    write_atomically(folder / "evaluation.json", json.dumps(content, indent=1) + "\n")  # the last: then both are there
    print(format_table(results))
    return results


if __name__ == "__main__":
    main()
