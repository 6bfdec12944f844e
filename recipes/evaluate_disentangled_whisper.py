"""
Measure a DisentangledWhisper folder: WER per noise, noise accuracy, and how far noise moves latents and tokens.

    python recipes/evaluate_disentangled_whisper.py --model outputs/mini_disentangled \\
        --dataset digit_strings:../shared/data/spoken_digits ../shared/data/an4 \\
        --noise_dataset ../shared/data/esc50_noise --noise_classes rain dog helicopter sea_waves crackling_fire \\
        --pairs ../shared/data/voicebank_demand_pairs

Each test utterance is mixed with one of the noise classes at one SNR, both drawn by its own seed: all models meet the
same pairs. The noise head is measured on the validation split, mixed with the classes of its training: once with the
clips of the noise corpora's training split, as VoiceBank-DEMAND's validation shares the recordings of its training
(`noise_accuracy`), and once with those of their validation split (`noise_accuracy_new_clips`). `--pairs` are
corpora of real pairs; where the head knows all their classes (VoiceBank-DEMAND's in `--split validation`), they give a
noise accuracy, too. A plain Whisper, an adapter and a frozen base have neither tokens nor residue: they get their
WER only. Writes `evaluation.json` into `--output_dir`, and for each corpus `noise_map_<corpus>.png` (the paper's
Fig. 3) and, with a noise head, `noise_features_<corpus>.png` (Fig. 4). Two CPU cores: about a minute for ten minutes
of speech with greedy search.
"""

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets
from evaluate_stable_token import Models, corpus_label
from evaluate_stable_token import load_models as load_any
from transformers import (
    AutoConfig,
    HfArgumentParser,
)

import clearspeech  # noqa: F401  registers the suite's classes
from clearspeech.processing.corpora import load_noise
from clearspeech.processing.noisy_pairs import mix_pairs, noise_perturber
from clearspeech.processing.perturbation import utterance_seed
from clearspeech.trainers.evaluation import open_short
from clearspeech.trainers.noise_evaluation import (
    LatentSpeech,
    NoisyPairs,
    encode_latents,
    frame_distances,
    frame_spread,
    invariance_table,
    noise_accuracy,
    posterior_table,
    read_pairs,
    word_error_rates,
)
from clearspeech.trainers.noise_figures import plot_noise_features, plot_noise_map, project_features
from clearspeech.trainers.results import write_atomically

FRAME_SECONDS = 0.01  # one mel frame
TITLES = {  # the table's lines, in order: title and unit; a line of a noise class follows that of all
    "wer": ("WER, noisy", " %"),
    "wer/clean": ("WER, clean", " %"),
    "noise_accuracy": ("noise accuracy, seen clips", " %"),
    "noise_accuracy_new_clips": ("noise accuracy, new clips", " %"),
    "latent_distance": ("latents, clean to noisy, L2", ""),
    "latent_distance_relative": ("... relative to two clean frames", ""),
    "code_distance": ("codes, clean to noisy, L2", ""),
    "code_distance_relative": ("... relative to two clean frames", ""),
    "ued": ("UED", " %"),
    "codebook_usage": ("codes in use", " %"),
    "clean_posterior_max": ("clean: likeliest noise", " %"),
    "clean_posterior_entropy": ("clean: entropy of the noise", " nats"),
    "clean_unknown": ("clean: noise is unknown", " %"),
    "noisy_posterior_max": ("noisy: likeliest noise", " %"),
    "noisy_posterior_entropy": ("noisy: entropy of the noise", " nats"),
    "noisy_unknown": ("noisy: noise is unknown", " %"),
}


@dataclass
class EvaluationArguments:
    model: str = field(metadata={"help": "Folder or Hub id of a DisentangledWhisper or of a plain Whisper."})
    dataset: list[str] = field(
        default_factory=list, metadata={"help": "Corpora of clean speech, see processing/corpora.py."}
    )
    noise_dataset: list[str] = field(default_factory=list, metadata={"help": "Corpora of noise to mix them with."})
    noise_classes: list[str] = field(
        default_factory=list, metadata={"help": "Classes of noise to test on; all when none is given."}
    )
    snrs_db: list[float] = field(
        default_factory=lambda: [2.5, 7.5, 12.5, 17.5],
        metadata={"help": "SNRs to test at, in dB; those of VoiceBank-DEMAND's test set by default."},
    )
    validation_noise_classes: list[str] = field(
        default_factory=list, metadata={"help": "Classes for the noise accuracy; all of the head's by default."}
    )
    validation_snrs_db: list[float] = field(
        default_factory=lambda: [0.0, 5.0, 10.0, 15.0], metadata={"help": "SNRs for the noise accuracy, in dB."}
    )
    pairs: list[str] = field(default_factory=list, metadata={"help": "Corpora of real pairs, with clean_audio."})
    transcribe_pairs: bool = field(default=False, metadata={"help": "Measure the WER of the real pairs, too."})
    control: str | None = field(default=None, metadata={"help": "A second model for the picture of distances."})
    split: str = field(default="test", metadata={"help": "Split of speech, noise and pairs."})
    max_utterances: int | None = field(default=None, metadata={"help": "Measure on the first so many of each corpus."})
    max_seconds: float = field(default=30.0, metadata={"help": "Longer utterances are left out."})
    num_beams: int | None = field(default=None, metadata={"help": "Of the beam search; the model's own by default."})
    batch_size: int = field(default=32, metadata={"help": "Utterances at once."})
    device: str = field(default="cuda" if torch.cuda.is_available() else "cpu", metadata={"help": "cpu or cuda."})
    output_dir: str | None = field(default=None, metadata={"help": "For JSON and PNG; MODEL/evaluation by default."})


def load_models(folder: str, device: str) -> Models:
    """
    Both halves of a DisentangledWhisper folder, or a Whisper; `tokenizer` is None for all without a quantizer.

    Raises:
        ValueError: the folder holds another model, or a tokenizer without a quantizer.
    """
    model_type = AutoConfig.from_pretrained(folder).model_type
    if model_type not in ("whisper", "disentangled_whisper"):
        raise ValueError(f"{folder} holds a {model_type!r} model; give a DisentangledWhisper or a Whisper.")
    return load_any(folder, device)


def load_shown(args: EvaluationArguments, models: Models) -> dict[str, Models]:
    """The models for the picture of distances by their folders' names, or by their paths where those are the same."""
    if not args.control:
        return {Path(args.model).name: models}
    paths = [args.model, args.control]
    names = [Path(path).name for path in paths]
    control = load_models(args.control, args.device)
    if control.tokenizer is None:
        raise ValueError(f"--control {args.control} has no quantizer, and so no codes that noise could move.")
    return dict(zip(names if len(set(names)) == len(names) else paths, (models, control)))


def count_trainable(models: Models) -> int:
    """Parameters that a training of this model changes; none of a plain Whisper, which is a base and stays frozen."""
    model = models.recognizer or models.tokenizer
    if model.config.model_type == "whisper":
        return 0
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def noise_classes(models: Models) -> list[str]:
    """The classes of the noise head, `unknown` last; none without a head."""
    return [] if models.tokenizer is None else models.tokenizer.config.noise_classes


@cache
def open_noise(sources: tuple[str, ...], split: str) -> Dataset:
    """Rows `audio`, `noise` of all noise corpora. Raises ValueError when none is given."""
    if not sources:
        raise ValueError("--dataset is mixed with noise: give --noise_dataset, or real pairs with --pairs alone.")
    return concatenate_datasets([load_noise(source, split, decoded=True) for source in sources])


def mixed_pairs(
    args: EvaluationArguments, source: str, split: str, snrs_db: list[float], classes: list[str], noise_split: str
) -> NoisyPairs:
    """One noisy view of each utterance, of the given classes or of all when there are none."""
    perturber = noise_perturber(open_noise(tuple(args.noise_dataset), noise_split), snrs_db, classes or None)
    speech = open_short(source, split, args.max_seconds, args.max_utterances)
    return read_pairs(mix_pairs(speech, perturber))


def measure(
    models: Models, pairs: NoisyPairs, batch_size: int, num_beams: int, transcribes: bool = True
) -> tuple[dict[str, float], list[LatentSpeech]]:
    """The figures of one corpus of pairs; and, of a model with a quantizer, its clean and noisy latents."""
    table, encoded = {}, []
    if models.tokenizer is not None:
        parts = (models.tokenizer, models.feature_extractor)
        views = {"clean": pairs.clean, "noisy": pairs.noisy}
        encoded = [encode_latents(*parts, view, batch_size, f"encode {name}") for name, view in views.items()]
        table |= invariance_table(*encoded, models.tokenizer.config.codebook_size)
        if noise_classes(models):
            table |= posterior_table(encoded[0], "clean") | posterior_table(encoded[1], "noisy")
    if models.recognizer is not None and transcribes:
        recognizer = (models.recognizer, models.feature_extractor, models.text_tokenizer)
        table = word_error_rates(*recognizer, pairs, batch_size, num_beams) | table
    return table, encoded


def measure_noise_head(
    args: EvaluationArguments, models: Models, source: str
) -> tuple[dict[str, float], LatentSpeech, list[str]]:
    """Noise accuracies on a corpus's validation split; and what was encoded for new clips, with its labels."""
    classes = args.validation_noise_classes or models.tokenizer.config.noise_labels
    parts = (models.tokenizer, models.feature_extractor)
    table = {}
    for noise_split, suffix in (("train", ""), ("validation", "_new_clips")):
        pairs = mixed_pairs(args, source, "validation", args.validation_snrs_db, classes, noise_split)
        speech = encode_latents(*parts, pairs.noisy, args.batch_size, f"encode validation, {noise_split} noise")
        found = noise_accuracy(speech.noise_probabilities, pairs.noise, noise_classes(models))
        table |= {name.replace("noise_accuracy", f"noise_accuracy{suffix}"): value for name, value in found.items()}
    return table, speech, pairs.noise


def distances_under_noise(models: Models, waveform, views: dict) -> dict[str, torch.Tensor]:
    """
    L2 between the codes of one clean utterance and of each noisy view of it, `(frames,)` by the views' names, in units
    of the mean distance between two of its clean latents.
    """
    speech = encode_latents(models.tokenizer, models.feature_extractor, [waveform, *views.values()], title="map")
    clean, *noisy = speech.quantized
    spread = frame_spread(speech.latents[:1])
    distances = frame_distances(noisy, [clean] * len(noisy))
    return {name: distance / spread for name, distance in zip(views, distances)}


def draw_map(args: EvaluationArguments, models: dict[str, Models], pairs: NoisyPairs, path: Path):
    """The utterance of median length under each class of noise at the lowest SNR, for each of the models."""
    middle = sorted(range(len(pairs.clean)), key=lambda row: len(pairs.clean[row]))[len(pairs.clean) // 2]
    waveform = torch.tensor(pairs.clean[middle])
    noise, snr_db = open_noise(tuple(args.noise_dataset), args.split), min(args.snrs_db)
    known = set(noise.select_columns("noise")["noise"])
    seen = set(next(iter(models.values())).tokenizer.config.noise_labels)
    classes = dict.fromkeys([*(args.noise_classes or sorted(known - {""} - seen)), *sorted(seen & known)])
    views = {}
    for name in classes:
        perturber = noise_perturber(noise, [snr_db], [name])
        title = f"{name} (seen)" if name in seen else name
        views[title] = perturber.perturb(waveform, utterance_seed(waveform))[0].numpy()
    maps = {name: distances_under_noise(each, waveform.numpy(), views) for name, each in models.items()}
    seconds = next(iter(models.values())).tokenizer.config.mel_frames_per_token * FRAME_SECONDS
    plot_noise_map(waveform, maps, seconds, path, f'"{pairs.texts[middle]}" with noise at {snr_db:g} dB SNR')


def draw_features(
    seen: LatentSpeech, labels: list[str], clean: LatentSpeech, noisy: LatentSpeech, noise: list[str], path: Path
):
    """What the noise head sees: left the classes of its training, right clean speech and the test's noise."""
    both = torch.cat([clean.noise_features, noisy.noise_features])
    panels = {
        "validation: noisy speech, seen classes": (project_features(seen.noise_features), labels),
        "test: clean and noisy speech": (project_features(both), ["clean"] * len(clean.codes) + noise),
    }
    plot_noise_features(panels, path, "What the noise head finds in the residue (t-SNE of its penultimate layer)")


def format_table(results: dict[str, dict[str, float]]) -> str:
    """One column per corpus, one line per figure."""
    lines = [" " * 40 + "".join(f"{corpus:>24}" for corpus in results)]
    names = dict.fromkeys(name for metrics in results.values() for name in metrics)
    for name, (title, unit) in TITLES.items():
        of_classes = [each for each in names if each.startswith(f"{name}/") and each not in TITLES]
        for each in [name, *of_classes] if name in names else []:
            text = title if each == name else f"  {each.partition('/')[2]}"
            values = [metrics.get(each) for metrics in results.values()]
            cells = ["" if value is None else f"{value:.2f}{unit}" for value in values]
            lines.append(f"{text:40}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def write_evaluation(args: EvaluationArguments, models: Models, num_beams: int, results: dict, path: Path):
    """The figures of all corpora, and what they depend on."""
    content = {
        "model": args.model,
        "parameters": models.num_parameters,
        "trainable_parameters": count_trainable(models),
        "split": args.split,
        "noise_classes": args.noise_classes,
        "snrs_db": args.snrs_db,
        "num_beams": num_beams,
        "metrics": results,
    }
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    (args,) = HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses(arguments)
    labels = [corpus_label(source) for source in [*args.dataset, *args.pairs]]
    if len(set(labels)) < len(labels) or not labels:
        raise ValueError(f"Give --dataset or --pairs, and corpora that tables can tell apart; got {labels}.")
    models = load_models(args.model, args.device)
    own_beams = models.recognizer.generation_config.num_beams if models.recognizer is not None else None
    num_beams = args.num_beams or own_beams or 1
    folder = Path(args.output_dir or Path(args.model, "evaluation"))
    shown = load_shown(args, models)
    results = {}
    for source, label in zip(args.dataset, labels):
        accuracy, head = {}, []
        if noise_classes(models):  # first: labels that the head does not know are refused before the long work
            accuracy, *head = measure_noise_head(args, models, source)
        pairs = mixed_pairs(args, source, args.split, args.snrs_db, args.noise_classes, args.split)
        metrics, encoded = measure(models, pairs, args.batch_size, num_beams)
        results[label] = metrics | accuracy
        if encoded:
            draw_map(args, shown, pairs, folder / f"noise_map_{label}.png")
        if head:
            draw_features(*head, *encoded, pairs.noise, folder / f"noise_features_{label}.png")
    for source, label in zip(args.pairs, labels[len(args.dataset) :]):
        pairs = read_pairs(open_short(source, args.split, args.max_seconds, args.max_utterances))
        results[label], encoded = measure(models, pairs, args.batch_size, num_beams, args.transcribe_pairs)
        if set(pairs.noise) <= set(noise_classes(models)):
            results[label] |= noise_accuracy(encoded[1].noise_probabilities, pairs.noise, noise_classes(models))
    write_evaluation(args, models, num_beams, results, folder / "evaluation.json")
    print(format_table(results))
    return results


if __name__ == "__main__":
    main()
