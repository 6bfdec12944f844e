"""
Measure a FactoredASR folder: WER and CER on speech alone, and with a second utterance mixed in.

    python recipes/evaluate_factored_asr.py --model outputs/mini_factored \\
        --dataset digit_strings:../shared/data/spoken_digits ../shared/data/an4

The paper's Table 3 mixes pairs of utterances of one magnitude, `(1 - rate) u_a + rate u_b`, at these rates; the pairs
are fixed, so that all models meet the same. At rate 0 the utterance is brought to that magnitude, too, and nothing is
mixed in: rates differ in the second voice, not in loudness. Writes `evaluation.json`, with `wer` and `cer` at rate 0
and `wer/0.1` at another, and `evaluation_utterances.json`, with each utterance's word errors, into `--output_dir`:
what `trainers/bootstrap.py` compares two models with. Two CPU cores: about a minute for ten minutes of speech and each
rate.
"""

import json
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from datasets import Dataset
from measured_speech import MeasuredSpeechArguments, label_sources
from table_runs import CLEAN
from transformers import AutoConfig, AutoModelForRNNT, HfArgumentParser, PreTrainedModel

import clearspeech  # noqa: F401  registers the suite's classes
from clearspeech.processing.audio_reading import SAMPLING_RATE
from clearspeech.processing.perturbation import utterance_seed
from clearspeech.processing.processing_factored_asr import FactoredASRProcessor
from clearspeech.processing.utterance_mixing import mix_utterances
from clearspeech.trainers.bootstrap import WordErrors, count_word_errors
from clearspeech.trainers.evaluation import length_batches
from clearspeech.trainers.metrics import CharacterErrorRate, WordErrorRate
from clearspeech.trainers.results import write_atomically

TITLES = {"wer": "WER", "cer": "CER"}


@dataclass
class EvaluationArguments(MeasuredSpeechArguments):
    model: str = field(metadata={"help": "Folder or Hub id of a FactoredASR with its processor."})
    mixing_rates: list[float] = field(
        default_factory=lambda: [0.0, 0.1, 0.25, 0.3],
        metadata={"help": "Shares of the second utterance; Table 3's by default."},
    )
    num_beams: int = field(default=1, metadata={"help": "Of the beam search; 1 is greedy."})


def load_model(folder: str, device: str) -> tuple[PreTrainedModel, FactoredASRProcessor]:
    """A FactoredASR and its processor. Raises ValueError for a folder of another model."""
    model_type = AutoConfig.from_pretrained(folder).model_type
    if model_type != "factored_asr":
        raise ValueError(f"{folder} holds a {model_type!r} model; give a folder of recipes/train_factored_asr.py.")
    return AutoModelForRNNT.from_pretrained(folder).eval().to(device), FactoredASRProcessor.from_pretrained(folder)


def count_parameters(model: PreTrainedModel) -> int:
    """Of what there is at inference: the reconstructors run in training only."""
    training_only = model.reconstruction.parameters() if model.config.factorize else ()
    return model.num_parameters() - sum(weight.numel() for weight in training_only)


@torch.no_grad()
def transcribe(
    model: PreTrainedModel,
    processor: FactoredASRProcessor,
    waveforms: list[np.ndarray],
    batch_size: int = 32,
    num_beams: int = 1,
    title: str = "transcribe",
) -> list[str]:
    """Transcripts of waveforms `(samples,)` at 16 kHz, in their order; title: of the progress bar."""
    texts: dict[int, str] = {}
    for rows in length_batches(waveforms, batch_size, title):
        batch = [waveforms[row] for row in rows]
        inputs = processor(audio=batch, sampling_rate=SAMPLING_RATE, return_tensors="pt").to(model.device)
        texts |= zip(rows, processor.batch_decode(model.generate(**inputs, num_beams=num_beams)), strict=True)
    return [texts[row] for row in range(len(waveforms))]


def measure(
    model: PreTrainedModel, processor: FactoredASRProcessor, corpus: Dataset, args: EvaluationArguments
) -> tuple[dict[str, float], dict[str, WordErrors]]:
    """Rates of error of one corpus by name and condition, and word errors of each utterance by condition."""
    metrics, errors = {}, {}
    speech = corpus.select_columns(["audio", "text"])  # of pairs the noisy half
    for rate in args.mixing_rates:
        condition = f"{rate:g}"
        mixed = mix_utterances(speech, rate)
        waveforms = [np.asarray(row["audio"], dtype=np.float32) for row in mixed]
        references = list(mixed.select_columns("text")["text"])
        texts = transcribe(model, processor, waveforms, args.batch_size, args.num_beams, f"mixing rate {condition}")
        figures = WordErrorRate().compute(predictions=texts, references=references)
        figures |= CharacterErrorRate().compute(predictions=texts, references=references)
        metrics |= {name if condition == CLEAN else f"{name}/{condition}": value for name, value in figures.items()}
        errors[condition] = count_word_errors([utterance_seed(each) for each in waveforms], texts, references)
    return metrics, errors


def format_table(results: dict[str, dict[str, float]]) -> str:
    """One column per corpus, one line per figure, in percent."""
    lines = [" " * 30 + "".join(f"{corpus:>24}" for corpus in results)]
    names = dict.fromkeys(name for metrics in results.values() for name in metrics)
    for name in sorted(names, key=lambda name: list(TITLES).index(name.partition("/")[0])):
        measured, _, rate = name.partition("/")
        cells = [f"{metrics[name]:.2f} %" if name in metrics else "" for metrics in results.values()]
        title = f"{TITLES[measured]}, mixing rate {rate or CLEAN}"
        lines.append(f"{title:30}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    (args,) = HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses(arguments)
    sources = label_sources(args.dataset)
    model, processor = load_model(args.model, args.device)
    folder = args.folder
    results, errors = {}, {}
    for label, source in sources.items():
        corpus = args.load(source)
        results[label], errors[label] = measure(model, processor, corpus, args)
    content = {
        "model": args.model,
        "parameters": count_parameters(model),
        "split": args.split,
        "num_beams": args.num_beams,
        "metrics": results,
    }
    by_utterance = {
        label: {condition: asdict(each) for condition, each in of_corpus.items()}
        for label, of_corpus in errors.items()
    }
    write_atomically(folder / "evaluation_utterances.json", json.dumps(by_utterance) + "\n")
    write_atomically(folder / "evaluation.json", json.dumps(content, indent=1) + "\n")  # the last: then both are there
    print(format_table(results))
    return results


if __name__ == "__main__":
    main()
