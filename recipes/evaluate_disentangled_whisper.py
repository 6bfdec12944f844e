"""
Measure a DisentangledWhisper folder: WER per noise, noise accuracy, and how far noise moves latents and tokens.

    python recipes/evaluate_disentangled_whisper.py --model outputs/mini_disentangled \\
        --dataset digit_strings:../shared/data/spoken_digits ../shared/data/an4 \\
        --noise_dataset ../shared/data/esc50_noise --noise_classes rain dog helicopter sea_waves crackling_fire \\
        --pairs ../shared/data/voicebank_demand_pairs

Each test utterance is mixed with one of the noise classes at one SNR, both drawn by its own seed: all models meet the
same pairs. The noise head is measured on the validation split, mixed with the classes of its training: once with the
clips of the noise corpora's training split, recordings that the head was trained on, under other speech, as
VoiceBank-DEMAND's validation shares those of its training (`noise_accuracy`), and once with those of their validation
split, other recordings of the same classes (`noise_accuracy_new_clips`). `--pairs` are corpora of real pairs; where
the head knows all their classes (VoiceBank-DEMAND's in `--split validation`), they give a noise accuracy, too. Speech
that was recorded in noise and has no clean half (`chime4:FOLDER:real`) is transcribed: WER by noise. A plain Whisper,
an adapter and a frozen base have neither tokens nor residue: they get their WER only. `--base` measures a second model
on the same speech: the relative error reduction against it, `rer`.

Writes `evaluation.json` into `--output_dir`, then for each corpus with clean halves `noise_map_<corpus>.png` (the
paper's Fig. 3) and, with a noise head, `noise_features_<corpus>.png` (Fig. 4), each with its data in a `.json` beside
it. Two CPU cores: about a minute for ten minutes of speech with greedy search.
"""

import json
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from evaluate_stable_token import FRAME_SECONDS, Models
from evaluate_stable_token import load_models as load_any
from measured_speech import MeasuredSpeechArguments, label_sources
from transformers import (
    AutoConfig,
    HfArgumentParser,
)

import clearspeech  # noqa: F401  registers the suite's classes
from clearspeech.processing.corpora import load_noise
from clearspeech.processing.noisy_pairs import mix_pairs, noise_perturber
from clearspeech.processing.perturbation import utterance_seed
from clearspeech.trainers.noise_evaluation import (
    LatentSpeech,
    NoisyPairs,
    encode_latents,
    error_reductions,
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

TITLES = {  # the table's lines, in order: title and unit; a line of a noise class follows that of all
    "wer": ("WER, noisy", " %"),
    "rer": ("relative error reduction", " %"),
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
class EvaluationArguments(MeasuredSpeechArguments):
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
    pairs: list[str] = field(default_factory=list, metadata={"help": "Corpora of real pairs or noisy speech."})
    transcribe_pairs: bool = field(default=False, metadata={"help": "Measure the WER of the real pairs, too."})
    base: str | None = field(default=None, metadata={"help": "A model to reduce the errors of, such as the Whisper."})
    control: str | None = field(default=None, metadata={"help": "A second model for the picture of distances."})
    num_beams: int | None = field(default=None, metadata={"help": "Of the beam search; the model's own by default."})


@dataclass
class Measured:
    """
    What the pictures of a corpus show. encoded: by view, empty without tokens; seen: validation speech under the noise
    head's own classes, with their labels; is_mixed: its noise was added here, not recorded.
    """

    label: str
    pairs: NoisyPairs
    encoded: dict[str, LatentSpeech]
    seen: tuple[LatentSpeech, list[str]] | None
    is_mixed: bool


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


def load_base(args: EvaluationArguments) -> Models | None:
    """The model of `--base`, if there is one. Raises ValueError for one that does not transcribe."""
    base = load_models(args.base, args.device) if args.base else None
    if base is not None and base.recognizer is None:
        raise ValueError(f"--base {args.base} does not transcribe, and so has no errors that could be reduced.")
    return base


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
    speech = replace(args, split=split).load(source)
    return read_pairs(mix_pairs(speech, perturber))


def measure(
    models: Models, pairs: NoisyPairs, args: EvaluationArguments, beams: int, base: Models | None, transcribes: bool
) -> tuple[dict[str, float], dict[str, LatentSpeech]]:
    """The figures of one corpus; and, of a model with a quantizer, the latents of `clean`, if any, and of `noisy`."""
    table, encoded = {}, {}
    if models.tokenizer is not None:
        for name, view in pairs.views().items():
            parts = (models.tokenizer, models.feature_extractor, view, args.batch_size)
            encoded[name] = encode_latents(*parts, f"encode {name}")
        if "clean" in encoded:
            table |= invariance_table(encoded["clean"], encoded["noisy"], models.tokenizer.config.codebook_size)
        for name, speech in encoded.items() if noise_classes(models) else ():
            table |= posterior_table(speech, name)
    if models.recognizer is not None and transcribes:
        rates = error_rates(models, pairs, args.batch_size, beams)
        reductions = error_reductions(rates, error_rates(base, pairs, args.batch_size, beams)) if base else {}
        table = rates | reductions | table
    return table, encoded


def error_rates(models: Models, pairs: NoisyPairs, batch_size: int, beams: int) -> dict[str, float]:
    parts = (models.recognizer, models.feature_extractor, models.text_tokenizer)
    return word_error_rates(*parts, pairs, batch_size, beams)


def measure_noise_head(
    args: EvaluationArguments, models: Models, source: str
) -> tuple[dict[str, float], LatentSpeech, list[str]] | None:
    """
    Noise accuracies on a corpus's validation split: `noise_accuracy` in the noise recordings of training, and
    `noise_accuracy_new_clips` in others of the same classes; and what was encoded for the latter, with its labels.
    None, and a printed line, where the noise has none of the head's classes or a corpus no such split, unless
    `--validation_noise_classes` asks for it.
    """
    labels, asked = models.tokenizer.config.noise_labels, args.validation_noise_classes
    splits, table = {"": "train", "_new_clips": "validation"}, {}
    try:
        known = set(open_noise(tuple(args.noise_dataset), "train").select_columns("noise")["noise"])
        if not asked and not known & set(labels):
            print(f"{source}: no noise accuracy; the noise has none of the head's classes {', '.join(labels)}")
            return None
        mixed = (args, source, "validation", args.validation_snrs_db, asked or labels)
        views = {suffix: mixed_pairs(*mixed, noise_split) for suffix, noise_split in splits.items()}
    except ValueError as error:
        if asked or "has no split" not in str(error):
            raise
        print(f"{source}: no noise accuracy; {error}")
        return None
    for suffix, pairs in views.items():
        title = f"encode validation, {splits[suffix]} noise"
        speech = encode_latents(models.tokenizer, models.feature_extractor, pairs.noisy, args.batch_size, title)
        found = noise_accuracy(speech.noise_probabilities, pairs.noise, noise_classes(models))
        table |= {name.replace("noise_accuracy", f"noise_accuracy{suffix}"): value for name, value in found.items()}
    return table, speech, pairs.noise


def accuracy_of_pairs(label: str, models: Models, noisy: LatentSpeech, noise: list[str]) -> dict[str, float]:
    """Noise accuracy under the labels of the corpus; none, and a printed line, when the head lacks one of them."""
    strange = sorted(set(noise) - set(models.tokenizer.config.noise_labels))
    if strange:
        print(f"{label}: no noise accuracy; the head has no class for the noise {', '.join(map(repr, strange))}")
        return {}
    return noise_accuracy(noisy.noise_probabilities, noise, noise_classes(models))


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


def mark(name: str, seen: set[str]) -> str:
    return f"{name} (seen)" if name in seen else name


def mixed_views(args: EvaluationArguments, waveform: torch.Tensor, seen: set[str]) -> dict[str, np.ndarray]:
    """An utterance under each class of noise at the lowest SNR; none where no noise has a class."""
    noise = open_noise(tuple(args.noise_dataset), args.split)
    known = set(noise.select_columns("noise")["noise"])
    classes = dict.fromkeys([*(args.noise_classes or sorted(known - {""} - seen)), *sorted(seen & known)])
    views = {}
    for name in classes:
        perturber = noise_perturber(noise, [min(args.snrs_db)], [name])
        views[mark(name, seen)] = perturber.perturb(waveform, utterance_seed(waveform))[0].numpy()
    return views


def draw_map(args: EvaluationArguments, models: dict[str, Models], pairs: NoisyPairs, path: Path, is_mixed: bool):
    """The utterance of median length, mixed with each class of noise or as recorded, for each of the models."""
    middle, config = pairs.middle(), next(iter(models.values())).tokenizer.config
    waveform, seen = pairs.clean[middle], set(config.noise_labels)
    title = f'"{pairs.texts[middle]}" with noise'
    if is_mixed:
        views = mixed_views(args, torch.tensor(waveform), seen)
        title += f" at {min(args.snrs_db):g} dB SNR"
    else:
        views = {mark(name, seen): view for name, view in pairs.recordings(middle).items()}
    if not views:
        print(f"no {path.name}: the noise has no classes to tell apart")
        return
    maps = {name: distances_under_noise(each, waveform, views) for name, each in models.items()}
    plot_noise_map(waveform, maps, config.mel_frames_per_token * FRAME_SECONDS, path, title)


def draw_features(
    args: EvaluationArguments,
    encoded: dict[str, LatentSpeech],
    noise: list[str],
    path: Path,
    seen: tuple[LatentSpeech, list[str]] | None,
):
    """What the noise head sees: left, where measured, the classes of its training; right clean and noisy speech."""
    labels = ["clean"] * len(encoded["clean"].codes) if "clean" in encoded else []
    labels += [name or "no class" for name in noise]
    features = torch.cat([speech.noise_features for speech in encoded.values()])
    panels = {} if seen is None else {"validation: noisy speech, seen classes": (seen[0].noise_features, seen[1])}
    panels[f"{args.split}: {' and '.join(encoded)} speech"] = (features, labels)
    fewest = min(len(labels) for _, labels in panels.values())
    if fewest < 3:
        print(f"no {path.name}: t-SNE needs at least three utterances, got {fewest}")
        return
    places = {title: (project_features(points), labels) for title, (points, labels) in panels.items()}
    plot_noise_features(places, path, "What the noise head finds in the residue (t-SNE of its penultimate layer)")


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
        "base": args.base,
        "metrics": results,
    }
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def measure_all(
    args: EvaluationArguments, models: Models, base: Models | None, labels: list[str], num_beams: int
) -> tuple[dict[str, dict[str, float]], list[Measured]]:
    """The figures of all corpora by their labels, and what their pictures show."""
    results, measured = {}, []
    for source, label in zip(args.dataset, labels):
        head = None
        if noise_classes(models):  # first: labels that the head does not know are refused before the long work
            head = measure_noise_head(args, models, source)
        accuracy, seen = (head[0], head[1:]) if head else ({}, None)
        pairs = mixed_pairs(args, source, args.split, args.snrs_db, args.noise_classes, args.split)
        metrics, encoded = measure(models, pairs, args, num_beams, base, True)
        results[label] = metrics | accuracy
        measured.append(Measured(label, pairs, encoded, seen, True))
    for source, label in zip(args.pairs, labels[len(args.dataset) :]):
        pairs = read_pairs(args.load(source))
        transcribes = args.transcribe_pairs or pairs.clean is None
        results[label], encoded = measure(models, pairs, args, num_beams, base, transcribes)
        if noise_classes(models):
            results[label] |= accuracy_of_pairs(label, models, encoded["noisy"], pairs.noise)
        measured.append(Measured(label, pairs, encoded, None, False))
    return results, measured


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    (args,) = HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses(arguments)
    labels = [*label_sources([*args.dataset, *args.pairs])]
    if not labels:
        raise ValueError("Give corpora to measure on, --dataset or --pairs; got neither.")
    models, base = load_models(args.model, args.device), load_base(args)
    own_beams = models.recognizer.generation_config.num_beams if models.recognizer is not None else None
    num_beams = args.num_beams or own_beams or 1
    folder = args.folder
    shown = load_shown(args, models)
    results, measured = measure_all(args, models, base, labels, num_beams)
    write_evaluation(args, models, num_beams, results, folder / "evaluation.json")  # before any picture can fail
    print(format_table(results))
    for each in measured:
        if "clean" in each.encoded:
            draw_map(args, shown, each.pairs, folder / f"noise_map_{each.label}.png", each.is_mixed)
        if noise_classes(models):
            path = folder / f"noise_features_{each.label}.png"
            draw_features(args, each.encoded, each.pairs.noise, path, each.seen)
    return results


if __name__ == "__main__":
    main()
