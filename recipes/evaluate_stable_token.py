"""
Measure a tokenizer folder: WER on clean and noisy speech, and UED under each condition of StableToken's Table 13.

    python recipes/evaluate_stable_token.py --model outputs/mini --noise_dataset ../shared/data/esc50_noise \\
        --dataset digit_strings:../shared/data/spoken_digits ../shared/data/an4

Takes any tokenizer of the suite: with a recognizer head it also transcribes, without one the WER is left out. A
Whisper folder (the base of a mini model) has no tokens and gets its WER only. Writes `evaluation.json`, and for each
corpus a picture of the UED and one of an utterance's tokens, into `--output_dir`. Two CPU cores: about a minute for
ten minutes of speech.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from measured_speech import MeasuredSpeechArguments, label_sources
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioTokenization,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedModel,
)

import clearspeech  # noqa: F401  registers the suite's classes
from clearspeech.modeling.modeling_whisper_ctc import WhisperForJointCTC
from clearspeech.trainers.evaluation import load_noise_conditions, noise_table, perturbed_views, tokenize, transcribe
from clearspeech.trainers.figures import plot_token_strips, plot_unit_edit_distance
from clearspeech.trainers.metrics import WordErrorRate
from clearspeech.trainers.results import write_atomically

CONDITIONS = {
    "gaussian": "Gaussian, 25 dB",
    "pink": "pink, 22 dB",
    "brown": "brown, 16 dB",
    "bit_crush": "bit crush, 10 bits",
    "real": "real noise, 16 dB",
    "real_ood": "held-out real noise, 16 dB",
}
EMBEDDED_CONDITIONS = {  # what `--noise_dataset embedded` is: made, not recorded
    "real": "stand-in noise, 16 dB",
    "real_ood": "held-out stand-in noise, 16 dB",
}
FRAME_SECONDS = 0.01  # one mel frame
HAVE_TOKENS = {  # by model type: whether a model of this configuration has tokens
    "stable_token": lambda config: True,
    "disentangled_whisper": lambda config: config.bottleneck == "quantizer",
    "kmeans_tokenizer": lambda config: True,
}


@dataclass
class EvaluationArguments(MeasuredSpeechArguments):
    model: str = field(metadata={"help": "Folder or Hub id of the tokenizer, with or without its recognizer."})
    max_seconds: float = field(
        default=math.inf, metadata={"help": "Longer utterances are left out; else tokens are made in windows."}
    )
    noise_dataset: list[str] = field(
        default_factory=list,
        metadata={"help": "Corpora of real noise; without one its conditions are left out."},
    )
    wer_conditions: list[str] = field(
        default_factory=lambda: ["clean", "real"], metadata={"help": "Where to transcribe: clean, or a condition."}
    )


@dataclass
class Models:
    """What a folder holds. tokenizer: None for a Whisper; recognizer: None for a tokenizer saved on its own."""

    tokenizer: PreTrainedModel | None
    recognizer: PreTrainedModel | None
    feature_extractor: object
    text_tokenizer: object

    @property
    def num_parameters(self) -> int:
        return (self.recognizer or self.tokenizer).num_parameters()


def load_models(folder: str, device: str) -> Models:
    """
    A tokenizer of the suite, with its recognizer where the folder holds that, or a Whisper.

    Raises:
        ValueError: the folder holds neither, or half a model without tokens.
    """
    config = AutoConfig.from_pretrained(folder)
    tokenizer = recognizer = text_tokenizer = None
    if config.model_type == "whisper":
        recognizer = WhisperForJointCTC.from_pretrained(folder).eval().to(device)
    elif config.model_type not in HAVE_TOKENS:
        known = ", ".join(["whisper", *HAVE_TOKENS])
        raise ValueError(f"{folder} holds a {config.model_type!r} model; give one of {known}.")
    elif not any(name.endswith("ForConditionalGeneration") for name in config.architectures or []):
        if not HAVE_TOKENS[config.model_type](config):
            raise ValueError(f"{folder} holds half a model, with bottleneck={config.bottleneck!r}: it has no tokens.")
        tokenizer = AutoModelForAudioTokenization.from_pretrained(folder).eval().to(device)
    else:
        recognizer = AutoModelForSpeechSeq2Seq.from_pretrained(folder).eval().to(device)
        tokenizer = recognizer.model if HAVE_TOKENS[config.model_type](config) else None
    if recognizer is not None:
        text_tokenizer = AutoTokenizer.from_pretrained(folder)
    return Models(tokenizer, recognizer, AutoFeatureExtractor.from_pretrained(folder), text_tokenizer)


def condition_titles(noise_dataset: list[str]) -> dict[str, str]:
    """What tables and pictures call the conditions; synthetic stand-ins for real noise are called so."""
    return CONDITIONS | EMBEDDED_CONDITIONS if "embedded" in noise_dataset else CONDITIONS


def measure(
    models: Models,
    waveforms: list,
    texts: list[str],
    noise: dict[str, list],
    wer_conditions: list[str],
    batch_size: int = 32,
) -> dict[str, float]:
    """The figures of one corpus, see `noise_table`; of a Whisper its WER."""
    if models.tokenizer is None:
        recognizer = (models.recognizer, models.feature_extractor, models.text_tokenizer)
        predictions = transcribe(*recognizer, waveforms, batch_size)
        return WordErrorRate().compute(predictions=predictions, references=texts)
    return noise_table(
        models.tokenizer,
        models.feature_extractor,
        waveforms,
        noise,
        models.recognizer,
        models.text_tokenizer,
        texts,
        wer_conditions,
        batch_size,
    )


def tokens_under_noise(
    models: Models, waveform, noise: dict[str, list], conditions: dict[str, str]
) -> dict[str, Tensor]:
    """Codes `(frames,)` of one utterance clean and under each condition, by the conditions' titles."""
    codes = {"clean": tokenize(models.tokenizer, models.feature_extractor, [waveform]).codes[0]}
    for condition, views in perturbed_views([waveform], noise):
        codes[conditions[condition]] = tokenize(models.tokenizer, models.feature_extractor, views).codes[0]
    return codes


def format_table(results: dict[str, dict[str, float]], conditions: dict[str, str]) -> str:
    """One column per corpus, one line per figure, in percent. conditions: their titles by name."""
    titles = {"wer": "WER, clean"}
    titles |= {f"wer/{name}": f"WER, {title}" for name, title in conditions.items()}
    titles |= {f"ued/{name}": f"UED, {title}" for name, title in conditions.items()}
    titles |= {"ued_mean": "UED, mean", "codebook_usage": "codes in use"}
    lines = [" " * 40 + "".join(f"{corpus:>18}" for corpus in results)]
    for name, title in titles.items():
        values = [metrics.get(name) for metrics in results.values()]
        if any(value is not None for value in values):
            cells = ["" if value is None else f"{value:.2f} %" for value in values]
            lines.append(f"{title:40}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def draw_tokens(models: Models, waveforms: list, texts: list[str], noise: dict, conditions: dict, path: Path):
    """A picture of the tokens of the utterance of median length, clean and under noise."""
    middle = sorted(range(len(waveforms)), key=lambda row: len(waveforms[row]))[len(waveforms) // 2]
    codes = tokens_under_noise(models, waveforms[middle], noise, conditions)
    seconds = models.tokenizer.config.mel_frames_per_token * FRAME_SECONDS
    plot_token_strips(codes, seconds, path, f'"{texts[middle]}"', waveforms[middle])


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    (args,) = HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses(arguments)
    sources = label_sources(args.dataset)
    models = load_models(args.model, args.device)
    noise, conditions = load_noise_conditions(args.noise_dataset, args.split), condition_titles(args.noise_dataset)
    folder = args.folder
    results = {}
    for label, source in sources.items():
        rows = list(args.load(source))
        waveforms, texts = [row["audio"] for row in rows], [row["text"] for row in rows]
        metrics = results[label] = measure(models, waveforms, texts, noise, args.wer_conditions, args.batch_size)
        if models.tokenizer is not None:
            bars = {title: metrics[f"ued/{name}"] for name, title in conditions.items() if f"ued/{name}" in metrics}
            plot_unit_edit_distance({label: bars}, folder / f"ued_{label}.png", f"Tokens that noise changes, {label}")
            draw_tokens(models, waveforms, texts, noise, conditions, folder / f"tokens_{label}.png")
    content = {"model": args.model, "parameters": models.num_parameters, "split": args.split, "metrics": results}
    write_atomically(folder / "evaluation.json", json.dumps(content, indent=1) + "\n")
    print(format_table(results, conditions))
    return results


if __name__ == "__main__":
    main()
