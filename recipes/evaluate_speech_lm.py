"""
Measure a SpeechLM folder: WER or accuracy on clean speech, under noise, and over the noise's SNR.

    python recipes/evaluate_speech_lm.py --model outputs/mini_speech_lm --noise_dataset ../shared/data/esc50_noise \\
        --dataset digit_strings:../shared/data/spoken_digits ../shared/data/an4 \\
        --conditions table13 --snr_curve gaussian pink brown real real_ood

The same for emotion, which needs a corpus with a column `emotion`:

    python recipes/evaluate_speech_lm.py --model outputs/mini_speech_lm_emotion --task emotion \\
        --dataset ../shared/data/ravdess --noise_dataset ../shared/data/esc50_noise --conditions table13

A model that was trained on several tasks meets one of the task's prompts with each utterance, drawn by the utterance's
own seed, as is the noise: all models meet the same. An emotion is right when the answer is its name, and nothing else;
its accuracy stands beside that of always answering the split's most frequent class. Writes `evaluation.json` and, with
`--snr_curve`, a picture `<wer or accuracy>_<corpus>.png` into `--output_dir`. Two CPU cores: a mini model takes about
a minute for ten minutes of speech and each condition.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from evaluate_stable_token import condition_titles
from measured_speech import MeasuredSpeechArguments, label_sources
from transformers import AutoConfig, AutoModelForCausalLM, HfArgumentParser, PreTrainedModel

import clearspeech  # noqa: F401  registers the suite's classes
from clearspeech.processing.processing_speech_lm import SpeechLMProcessor
from clearspeech.trainers.evaluation import load_noise_conditions
from clearspeech.trainers.results import write_atomically
from clearspeech.trainers.speech_lm_evaluation import choose_perturbations, measure, read_test
from clearspeech.trainers.speech_lm_figures import plot_snr_curves, read_snr_curves

TITLES = {  # the table's lines, in order; that of a condition follows that of clean speech
    "wer": "WER",
    "cer": "CER",
    "accuracy": "accuracy",
    "accuracy_worst_speaker": "accuracy of the worst speaker",
    "accuracy_best_speaker": "accuracy of the best speaker",
    "majority": "accuracy of the most frequent class",
    "unparsed": "answers that are no class",
}


@dataclass
class EvaluationArguments(MeasuredSpeechArguments):
    model: str = field(metadata={"help": "Folder or Hub id of a SpeechLM with its processor."})
    task: list[str] = field(
        default_factory=list,
        metadata={"help": "asr, emotion or both, where a corpus has answers; by default all of the model's training."},
    )
    noise_dataset: list[str] = field(default_factory=list, metadata={"help": "Corpora of real noise."})
    conditions: list[str] = field(
        default_factory=list,
        metadata={"help": "Conditions of StableToken's Table 13 to measure under, or table13 for all; none for none."},
    )
    snr_curve: list[str] = field(
        default_factory=list, metadata={"help": "Kinds of noise to measure over the SNR: gaussian, pink, real, ..."}
    )
    snrs_db: list[float] = field(
        default_factory=lambda: [20.0, 15.0, 10.0, 5.0, 0.0], metadata={"help": "SNRs of these curves, in dB."}
    )
    num_beams: int = field(default=1, metadata={"help": '"We use greedy search for ASR decoding"'})


def load_model(folder: str, device: str) -> tuple[PreTrainedModel, SpeechLMProcessor]:
    """
    A SpeechLM and its processor, whose audio tokenizer is on the same device.

    Raises:
        ValueError: the folder holds another model, or a processor whose units or text do not fit the model.
    """
    model_type = AutoConfig.from_pretrained(folder).model_type
    if model_type != "speech_lm":
        raise ValueError(f"{folder} holds a {model_type!r} model; give a folder of recipes/train_speech_lm.py.")
    model = AutoModelForCausalLM.from_pretrained(folder).eval().to(device)
    processor = SpeechLMProcessor.from_pretrained(folder)
    processor.check_model(model)
    processor.audio_tokenizer.to(device)
    return model, processor


def choose_tasks(asked: list[str], processor: SpeechLMProcessor) -> list[str]:
    """
    The tasks that are asked for, or all that the model was trained on.

    Raises:
        ValueError: the model was not trained on one of them.
    """
    foreign = [task for task in asked if task not in processor.tasks]
    if foreign:
        raise ValueError(f"--task {' '.join(foreign)}: this model was trained on {', '.join(processor.tasks)} alone.")
    return asked or list(processor.tasks)


def draw_curves(label: str, metrics: dict[str, float], titles: dict[str, str], model: str, folder: Path):
    """The curves over the SNR of one corpus, one picture per task. titles: of the conditions by name."""
    for name, measured, better in (("wer", "WER", "lower"), ("accuracy", "accuracy", "higher")):
        if name not in metrics:
            continue
        bands = baseline = None
        curves = {kind_title(kind, titles): points for kind, points in read_snr_curves(metrics, name).items()}
        if name == "accuracy":
            low, high = (read_snr_curves(metrics, f"accuracy_{end}") for end in ("low", "high"))
            limits = {kind: {snr: (low[kind][snr], high[kind][snr]) for snr in low[kind]} for kind in low}
            bands = {model: {kind_title(kind, titles): points for kind, points in limits.items()}}
            baseline = ("most frequent class", metrics["majority"])
        axis, path = f"{measured} in % ({better} is better)", folder / f"{name}_{label}.png"
        plot_snr_curves({model: curves}, path, f"{measured} on {label}", axis, bands, baseline)


def kind_title(kind: str, titles: dict[str, str]) -> str:
    """What a kind of noise is called at any SNR: "pink", from "pink, 22 dB"."""
    return titles[kind].rpartition(", ")[0]


def condition_title(condition: str, titles: dict[str, str]) -> str:
    """`pink` -> "pink, 22 dB"; `pink@5` -> "pink, 5 dB"; clean speech is ""."""
    kind, at, snr_db = condition.partition("@")
    return f"{kind_title(kind, titles)}, {snr_db} dB" if at else titles.get(kind, "clean")


def format_cell(metrics: dict[str, float], name: str) -> str:
    """A figure in percent, an accuracy with its interval; "" where it was not measured."""
    if name not in metrics:
        return ""
    measured, at, condition = name.partition("/")
    low, high = (metrics.get(f"{measured}_{end}{at}{condition}") for end in ("low", "high"))
    interval = "" if low is None else f" ({low:.1f} to {high:.1f})"
    return f"{metrics[name]:.2f} %{interval}"


def format_table(results: dict[str, dict[str, float]], titles: dict[str, str]) -> str:
    """One column per corpus, one line per figure, in percent; an accuracy has its 95 % interval beside it."""
    lines = [" " * 54 + "".join(f"{corpus:>26}" for corpus in results)]
    names = dict.fromkeys(name for metrics in results.values() for name in metrics)
    for measured, title in TITLES.items():
        for name in (name for name in names if name.partition("/")[0] == measured):
            text = f"{title}, {condition_title(name.partition('/')[2], titles)}"
            text = title if measured == "majority" else text
            lines.append(f"{text:54}" + "".join(f"{format_cell(metrics, name):>26}" for metrics in results.values()))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    (args,) = HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses(arguments)
    sources = label_sources(args.dataset)
    model, processor = load_model(args.model, args.device)
    tasks = choose_tasks(args.task, processor)
    noise = load_noise_conditions(args.noise_dataset, args.split)
    perturbations = choose_perturbations(args.conditions, args.snr_curve, args.snrs_db, noise)
    folder, titles = args.folder, condition_titles(args.noise_dataset)
    tests = {}
    for label, source in sources.items():  # all of them first: what cannot be measured is refused at once
        corpus = args.load(source)
        tests[label] = read_test(corpus, tasks, source)
    results = {}
    for label, test in tests.items():
        results[label] = measure(model, processor, test, noise, perturbations, args.batch_size, args.num_beams)
        if args.snr_curve:
            draw_curves(label, results[label], titles, Path(args.model).name, folder)
    content = {
        "model": args.model,
        "parameters": model.num_parameters(),
        "split": args.split,
        "num_beams": args.num_beams,
        "metrics": results,
    }
    write_atomically(folder / "evaluation.json", json.dumps(content, indent=1) + "\n")
    print(format_table(results, titles))
    return results


if __name__ == "__main__":
    main()
