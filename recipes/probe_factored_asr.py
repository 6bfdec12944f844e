"""
Probe a FactoredASR folder: how well speaker, noise class and characters can be read from content and from context.

    python recipes/probe_factored_asr.py --model outputs/mini_factored --dataset ../shared/data/an4 \\
        --noise_dataset ../shared/data/esc50_noise --noise_classes rain airplane wind crackling_fire church_bells \\
        engine vacuum_cleaner crickets toilet_flush clock_alarm

The probes are linear (trainers/probing.py). Speaker and noise class: from the mean over an utterance's frames, by
accuracy over five folds of the split, stratified by speaker, and for noise apart in utterances and in recordings
(ESC-50 has several clips of some; other clips count as a recording each), of which each class needs five.
Characters: from single frames, trained with CTC on the training split, by CER. Beside both factors stand the states of
the encoder that they are made from and, with `--baseline`, those of a model that was trained without factors. All
rates have a 95 % interval over utterances and the chance level beside them.

Writes `probe.json` and `probe.png` into `--output_dir`. Two CPU cores: about a minute for `an4` and a mini model.
"""

import json
from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset
from evaluate_factored_asr import load_model
from measured_speech import MeasuringArguments, corpus_label
from torch import Tensor
from transformers import HfArgumentParser, PreTrainedModel, ProcessorMixin

from clearspeech.processing.corpora import load_noise
from clearspeech.trainers.evaluation import open_short
from clearspeech.trainers.probing import (
    NUM_FOLDS,
    LabelledNoise,
    Probe,
    factor_frames,
    mix_labelled_noise,
    name_recording,
    plot_probes,
    probe_characters,
    probe_classes,
    stratified_folds,
)
from clearspeech.trainers.results import write_atomically

PROBES = {"speaker": "speaker", "noise": "noise", "characters": "characters_cer"}  # and the name of what they measure
TITLES = {
    "speaker": "speaker accuracy in %",
    "noise": "noise class accuracy in %",
    "characters_cer": "CER in % (lower is better)",
}
UNFACTORED = "unfactored"  # the baseline's states


@dataclass
class ProbeArguments(MeasuringArguments):
    model: str = field(metadata={"help": "Folder or Hub id of a FactoredASR with its processor."})
    dataset: str = field(metadata={"help": "Corpus of the speech, see processing/corpora.py."})
    baseline: str | None = field(default=None, metadata={"help": "One without factors, to compare with."})
    probes: list[str] = field(default_factory=lambda: list(PROBES), metadata={"help": "speaker, noise, characters."})
    noise_dataset: list[str] = field(default_factory=list, metadata={"help": "Corpora of labelled noise."})
    noise_classes: list[str] = field(default_factory=list, metadata={"help": "Classes to tell apart; all by default."})
    snrs_db: list[float] = field(
        default_factory=lambda: [0.0, 10.0], metadata={"help": "Lowest and highest SNR of the noise, in dB."}
    )
    noise_copies: int = field(default=3, metadata={"help": "How often each utterance is mixed with noise."})
    max_train_utterances: int = field(default=1000, metadata={"help": "So many random ones train for characters."})

    def __post_init__(self):
        unknown = [name for name in self.probes if name not in PROBES]
        if unknown or not self.probes:
            raise ValueError(f"--probes must be some of {', '.join(PROBES)}; got {', '.join(unknown) or 'none'}.")
        if "noise" in self.probes and not self.noise_dataset:
            raise ValueError("The probe for noise needs --noise_dataset; or name the other probes (--probes).")
        if len(self.snrs_db) != 2:
            raise ValueError(f"--snrs_db takes the lowest and the highest, got {self.snrs_db}.")


Models = list[tuple[PreTrainedModel, ProcessorMixin]]


def load_models(args: ProbeArguments) -> Models:
    """
    The model with its processor, and the baseline with its own.

    Raises:
        ValueError: a folder of another kind of model, a model without factors, or a baseline with some.
    """
    models = [load_model(folder, args.device) for folder in (args.model, args.baseline) if folder is not None]
    for folder, (model, _), factorize in zip((args.model, args.baseline), models, (True, False)):
        if model.config.factorize != factorize:
            raise ValueError(
                f"{folder} was trained with factorize={model.config.factorize}: --model needs factors to probe, and "
                "--baseline none."
            )
    return models


def represent(
    models: Models, waveforms: list[np.ndarray], args: ProbeArguments, title: str
) -> dict[str, list[Tensor]]:
    """`factor_frames` of the model, and as `UNFACTORED` the states of the baseline."""
    frames, *of_baseline = [factor_frames(*parts, waveforms, args.batch_size, title) for parts in models]
    return frames | ({UNFACTORED: of_baseline[0]["states"]} if of_baseline else {})


def read_waveforms(corpus: Dataset) -> list[np.ndarray]:
    return [np.asarray(waveform, dtype=np.float32) for waveform in corpus.select_columns("audio")[:]["audio"]]


def read_column(corpus: Dataset, name: str) -> list[str]:
    return [str(value or "") for value in corpus.select_columns(name)[:][name]]


def read_noise(args: ProbeArguments) -> dict[str, dict[str, list[np.ndarray]]]:
    """
    Clips by class and recording.

    Raises:
        ValueError: a clip without a file name, whose recording nothing tells, or a class that is asked for and not
            there, with those that are.
    """
    clips: dict[str, dict[str, list[np.ndarray]]] = {}
    for source in args.noise_dataset:
        noise = load_noise(source, args.split)
        files = noise.with_format(None).select_columns("audio")[:]["audio"]  # not decoded, with their names
        for row, file in zip(noise, files, strict=True):
            if not row["noise"]:
                continue
            if not file["path"]:
                raise ValueError(
                    f"{source} has a clip of {row['noise']} without a file name, and nothing else tells clips of one "
                    "recording, which must not be on both sides of a probe: give a folder of named files."
                )
            recordings = clips.setdefault(row["noise"], {})
            waveform = np.asarray(row["audio"], dtype=np.float32)
            recordings.setdefault(name_recording(file["path"]), []).append(waveform)
    missing = [name for name in args.noise_classes if name not in clips]
    if missing:
        raise ValueError(f"--noise_classes {' '.join(missing)}: the noise has {', '.join(sorted(clips))}.")
    return {name: clips[name] for name in args.noise_classes or sorted(clips)}


def run_probes(models: Models, test: Dataset, args: ProbeArguments) -> dict[str, Probe]:
    """The probes by what they measure. Raises ValueError where one of them has too little to work with."""
    waveforms, probes = read_waveforms(test), {}
    folds: np.ndarray | None = None
    noisy: LabelledNoise | None = None
    if "speaker" in args.probes:
        folds = stratified_folds(read_column(test, "speaker"))
    if "noise" in args.probes:
        noisy = mix_labelled_noise(waveforms, read_noise(args), tuple(args.snrs_db), args.noise_copies)
    clean = represent(models, waveforms, args, "speech")
    if folds is not None:
        probes["speaker"] = probe_classes(clean, read_column(test, "speaker"), folds)
    if noisy is not None:
        frames = represent(models, noisy.waveforms, args, "noisy speech")
        probes["noise"] = probe_classes(frames, noisy.labels, noisy.folds, noisy.utterances)
    if "characters" in args.probes:
        train = open_short(args.dataset, "train", args.max_seconds, None).shuffle(seed=0)
        train = train.select(range(min(args.max_train_utterances, len(train))))
        frames = represent(models, read_waveforms(train), args, "training speech")
        texts = read_column(train, "text"), read_column(test, "text")
        probes["characters_cer"] = probe_characters(frames, texts[0], clean, texts[1])
    return probes


def as_json(probes: dict[str, Probe], args: ProbeArguments) -> dict:
    """Rates by probe and representation, beside them intervals, differences and chance levels, all in percent."""
    differences = {name: probe.context_minus_content for name, probe in probes.items()}
    widths = {each: width for probe in probes.values() for each, width in probe.widths.items()}
    return {
        "model": args.model,
        "baseline": args.baseline,
        "corpus": corpus_label(args.dataset),
        "split": args.split,
        "folds": NUM_FOLDS,
        "snrs_db": args.snrs_db,
        "noise_classes": args.noise_classes,
        "noise_copies": args.noise_copies,
        **{name: {each: rate.value for each, rate in probe.rates.items()} for name, probe in probes.items()},
        "intervals": {
            name: {each: [rate.low, rate.high] for each, rate in probe.rates.items()} for name, probe in probes.items()
        },
        "context_minus_content": {name: [rate.value, rate.low, rate.high] for name, rate in differences.items()},
        "widths": widths,
        "chance": {name: probe.chance for name, probe in probes.items()},
    }


def format_table(probes: dict[str, Probe]) -> str:
    """One line per probe and representation."""
    lines = []
    for name, probe in probes.items():
        lines.append(f"{TITLES[name]}, chance {probe.chance:.1f}")
        rates = probe.rates | {"context - content": probe.context_minus_content}
        lines += [f"  {each:20}{rate.value:6.1f} ({rate.low:.1f} to {rate.high:.1f})" for each, rate in rates.items()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict[str, Probe]:
    (args,) = HfArgumentParser(ProbeArguments).parse_args_into_dataclasses(arguments)
    models = load_models(args)
    test = args.load(args.dataset)
    probes = run_probes(models, test, args)
    folder = args.folder
    title = f"What linear probes read from the factors, {corpus_label(args.dataset)}"
    plot_probes({TITLES[name]: probe for name, probe in probes.items()}, folder / "probe.png", title)
    write_atomically(folder / "probe.json", json.dumps(as_json(probes, args), indent=1) + "\n")
    print(format_table(probes))
    return probes


if __name__ == "__main__":
    main()
