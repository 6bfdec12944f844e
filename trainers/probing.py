"""
What each factor of a FactoredASR knows: linear probes for speaker, noise class and characters, and their picture.

    frames = factor_frames(model, processor, waveforms)  # content, context and states of each utterance
    probe = probe_classes(frames, speakers, stratified_folds(speakers))  # accuracy in percent, intervals, chance

Every probe is linear and reads standardized values, and every rate is of utterances that its probe was not trained on:

* speaker and noise class: logistic regression on means over an utterance's frames, five folds in turn. Speakers: each
  fold has its share of every speaker's utterances, which must not share recordings as composed digit strings do.
  Noise: each fold has utterances and recordings of its own, so that neither was met in training, nor another clip of
  the same recording;
* characters: one linear layer on single frames, trained with CTC on one split, measured on another.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rapidfuzz.distance import Levenshtein
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from ..processing.audio_reading import SAMPLING_RATE
from ..processing.perturbation import Perturbation, Perturber, utterance_seed
from ..processing.text_normalization import normalize_text
from .bootstrap import resampled_rates
from .evaluation import length_batches
from .figures import COLOURS, save_figure
from .losses import ctc_loss

NUM_FOLDS = 5
MAX_ITERATIONS = 2000  # of the logistic regression: it converges in some hundreds
BLANK = 0
CTC_EPOCHS, CTC_BATCH_SIZE, CTC_LEARNING_RATE = 30, 32, 1e-2
NOTHING_WRITTEN = 100.0  # CER in percent of an empty transcript, the characters' chance level
PERCENTILES = (2.5, 97.5)  # of a 95 % interval
ESC50_CLIP = re.compile(r"(\d+-\d+)-[A-Z]-\d+")  # fold, recording, take, class


@dataclass(frozen=True)
class Rate:
    """A rate in percent, or a difference of two in points, with its 95 % bootstrap interval over utterances."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Probe:
    """
    Rates by representation (`content`, `context`, `states`), and that of knowing nothing.

    context_minus_content: in points, of the same resampled utterances; None for a model without factors.
    widths: values per frame of each representation, of which a linear probe reads more from a wider one.
    """

    rates: dict[str, Rate]
    chance: float
    context_minus_content: Rate | None
    widths: dict[str, int]


@torch.no_grad()
def factor_frames(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    waveforms: Sequence[np.ndarray],
    batch_size: int = 32,
    title: str = "factors",
) -> dict[str, list[Tensor]]:
    """
    The representations of `waveforms` (16 kHz) by a FactoredASR, in their order, without padding.

    Returns by name, per utterance `(frames, dim)` float32 on the CPU: `content`, `context`, and the encoder's `states`
    that both are made from. A model without factors has `states` alone.
    Raises ValueError for no waveform.
    """
    if not len(waveforms):
        raise ValueError("There is no waveform to probe.")
    was_training = model.training
    model.eval()
    frames: dict[str, dict[int, Tensor]] = {}
    for rows in length_batches(waveforms, batch_size, title):
        audio = [waveforms[row] for row in rows]
        inputs = processor(audio=audio, sampling_rate=SAMPLING_RATE, return_tensors="pt")
        speech = model.factors(**inputs.to(model.device))
        factors = {} if speech.context is None else {"content": speech.content, "context": speech.context}
        for name, states in (factors | {"states": speech.last_hidden_state}).items():
            real = zip(states, speech.attention_mask, strict=True)
            utterances = (states[mask].float().cpu() for states, mask in real)
            frames.setdefault(name, {}).update(zip(rows, utterances, strict=True))
    model.train(was_training)
    return {name: [of_row[row] for row in range(len(waveforms))] for name, of_row in frames.items()}


def stratified_folds(labels: Sequence[str], seed: int = 0) -> np.ndarray:
    """
    A fold in 0..4 for each utterance `(utterances,)`, every class spread evenly over them.

    Raises ValueError for fewer than two classes, unknown ones (""), and classes of fewer than five utterances.
    """
    counts = {label: list(labels).count(label) for label in sorted(set(labels))}
    if "" in counts:
        raise ValueError(f"{counts['']} of {len(labels)} utterances have no label: leave them out, or the probe.")
    if len(counts) < 2:
        raise ValueError(f"A probe tells classes apart; got only {', '.join(counts) or 'no utterance'}.")
    few = {label: count for label, count in counts.items() if count < NUM_FOLDS}
    if few:
        raise ValueError(
            f"Each class needs at least {NUM_FOLDS} utterances, one for each fold; there are fewer of {few}. Leave "
            "these classes out, or give more utterances."
        )
    folds = np.zeros(len(labels), dtype=int)
    splitter = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    for fold, (_, held_out) in enumerate(splitter.split(folds, list(labels))):
        folds[held_out] = fold
    return folds


@dataclass
class LabelledNoise:
    """
    Utterances in noise: `waveforms` `(samples,)` at 16 kHz; per waveform the noise's class, the fold of its utterance
    and recording, and the number of the utterance, of which there may be several copies.
    """

    waveforms: list[np.ndarray]
    labels: list[str]
    folds: np.ndarray
    utterances: np.ndarray


def name_recording(path: str) -> str:
    """
    What a clip of noise was cut from, by its file: ESC-50 names several clips (takes A, B, ...) of one recording.

    A file of any other name counts as a recording of its own.
    """
    take = ESC50_CLIP.fullmatch(Path(path).stem)
    return take[1] if take else path


def split_recordings(recordings: Mapping[str, Sequence[np.ndarray]]) -> list[list[np.ndarray]]:
    """Clips by recording to clips by fold, all of a recording in one, about equally many in each."""
    folds: list[list[np.ndarray]] = [[] for _ in range(NUM_FOLDS)]
    for clips in sorted(recordings.values(), key=len, reverse=True):
        min(folds, key=len).extend(clips)
    return folds


def mix_labelled_noise(
    waveforms: Sequence[np.ndarray],
    clips: Mapping[str, Mapping[str, Sequence[np.ndarray]]],
    snrs_db: tuple[float, float],
    copies: int = 1,
    seed: int = 0,
) -> LabelledNoise:
    """
    Each of `waveforms` (16 kHz) `copies` times in noise, its classes equally often, the SNR uniform over a range.

    clips: waveforms by class and recording (`name_recording`). A fold's utterances meet only its own recordings, about
    a fifth; snrs_db: lowest and highest, in dB. Clip, place in the clip and SNR are seeded by the utterance's samples
    and the number of the copy, so that different models meet the same noise.

    Raises ValueError for fewer than two classes, classes of fewer than five recordings, and too few utterances for
    every class to occur in every fold.
    """
    few = {name: len(recordings) for name, recordings in clips.items() if len(recordings) < NUM_FOLDS}
    if few or len(clips) < 2:
        raise ValueError(
            f"The probe needs at least two classes of noise with {NUM_FOLDS} recordings each, one for each fold; got "
            f"{len(clips)} classes, and fewer recordings of {few}. Give other classes or more recordings."
        )
    if len(waveforms) // NUM_FOLDS * copies < len(clips):
        raise ValueError(
            f"{len(waveforms)} utterances x {copies} copies in {NUM_FOLDS} folds are too few for each of "
            f"{len(clips)} classes to occur in each fold. Give more utterances or copies, or fewer classes."
        )
    by_fold = {name: split_recordings(recordings) for name, recordings in clips.items()}
    mixed, labels, folds, utterances = [], [], [], []
    for place, row in enumerate(np.random.default_rng(seed).permutation(len(waveforms)).tolist()):
        waveform, fold = torch.tensor(np.asarray(waveforms[row], dtype=np.float32)), place % NUM_FOLDS
        for copy in range(copies):
            name = list(clips)[(place // NUM_FOLDS * copies + copy) % len(clips)]
            perturber = Perturber([Perturbation(name, "real", *snrs_db)], by_fold[name][fold])
            mixed.append(perturber.perturb(waveform, utterance_seed(waveform, salt=copy))[0].numpy())
            labels.append(name)
            folds.append(fold)
            utterances.append(row)
    return LabelledNoise(mixed, labels, np.array(folds), np.array(utterances))


def probe_classes(
    frames: Mapping[str, Sequence[Tensor]],
    labels: Sequence[str],
    folds: np.ndarray,
    utterances: np.ndarray | None = None,
    seed: int = 0,
) -> Probe:
    """
    How often a linear probe names an utterance's class, from the mean over its frames.

    frames: of each representation, see `factor_frames`; labels, folds `(utterances,)`: each fold in turn is measured
    with a probe trained on the others. utterances: numbers where several rows are copies of one, which are resampled
    together. Chance is always to answer the most frequent class.
    """
    utterances = np.arange(len(labels)) if utterances is None else utterances
    labels = np.array(labels)
    right = {}
    for name, of_name in frames.items():
        features = torch.stack([states.mean(dim=0) for states in of_name]).numpy()
        hits = np.zeros(len(labels))
        for fold in np.unique(folds):
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MAX_ITERATIONS))
            probe.fit(features[folds != fold], labels[folds != fold])
            hits[folds == fold] = probe.predict(features[folds == fold]) == labels[folds == fold]
        right[name] = np.bincount(utterances, weights=hits)
    most_frequent = np.unique(labels, return_counts=True)[1].max()
    return summarize(right, np.bincount(utterances), 100.0 * most_frequent / len(labels), widths_of(frames), seed)


def probe_characters(
    train: Mapping[str, Sequence[Tensor]],
    train_texts: Sequence[str],
    test: Mapping[str, Sequence[Tensor]],
    test_texts: Sequence[str],
    seed: int = 0,
) -> Probe:
    """
    CER in percent of a linear layer on each frame, trained with CTC; lower is better.

    train, test: frames of each representation, see `factor_frames`; their texts are normalized (`normalize_text`).
    Utterances with more characters than frames are not trained on; all are measured. Chance is to write nothing.

    Raises ValueError for an empty text, and where no utterance is left to train on.
    """
    train_texts, test_texts = ([normalize_text(text) for text in texts] for texts in (train_texts, test_texts))
    if not all(train_texts) or not all(test_texts):
        raise ValueError("A transcript is empty after normalization: leave its utterance out.")
    edits = {}
    for name in train:
        layer = CharacterLayer(train[name], train_texts)
        layer.fit(train[name], train_texts, seed)
        written = [layer.transcribe(states) for states in test[name]]
        edits[name] = np.array(list(map(Levenshtein.distance, written, test_texts)))
    return summarize(edits, np.array(list(map(len, test_texts))), NOTHING_WRITTEN, widths_of(test), seed)


def widths_of(frames: Mapping[str, Sequence[Tensor]]) -> dict[str, int]:
    """Values per frame of each representation."""
    return {name: of_name[0].shape[1] for name, of_name in frames.items()}


class CharacterLayer(nn.Linear):
    """
    One linear layer from a frame, standardized as the training frames, to characters; starts from zeros.

    frames: of the training utterances, `(frames, dim)` each; texts: theirs, whose characters it knows.
    """

    def __init__(self, frames: Sequence[Tensor], texts: Sequence[str]):
        self.characters = ["", *sorted(set("".join(texts)))]  # blank first
        super().__init__(frames[0].shape[1], len(self.characters))
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        values = torch.cat(list(frames))
        self.register_buffer("mean", values.mean(dim=0))
        self.register_buffer("deviation", values.std(dim=0).clamp(min=1e-5))  # a unit may be off everywhere

    def forward(self, frames: Tensor) -> Tensor:
        """Logits `(..., frames, characters)` of frames `(..., frames, dim)`."""
        return super().forward((frames - self.mean) / self.deviation)

    def fit(self, frames: Sequence[Tensor], texts: Sequence[str], seed: int):
        """Minimize CTC with Adam, its learning rate falling to 0. Raises ValueError as `probe_characters`."""
        ids = {character: number for number, character in enumerate(self.characters)}
        labels = [torch.tensor([ids[character] for character in text]) for text in texts]
        fitting = [row for row, states in enumerate(frames) if frames_needed(texts[row]) <= len(states)]
        if not fitting:
            raise ValueError(f"All {len(texts)} training utterances have fewer frames than characters: CTC cannot.")
        generator = torch.Generator().manual_seed(seed)
        batches = [
            [fitting[place] for place in batch]
            for _ in range(CTC_EPOCHS)
            for batch in torch.randperm(len(fitting), generator=generator).split(CTC_BATCH_SIZE)
        ]
        optimizer = torch.optim.Adam(self.parameters(), lr=CTC_LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=len(batches))
        pad = nn.utils.rnn.pad_sequence
        for rows in batches:
            lengths = torch.tensor([len(frames[row]) for row in rows])
            padded = pad([frames[row] for row in rows], batch_first=True)
            mask = torch.arange(padded.shape[1]) < lengths[:, None]
            targets = pad([labels[row] for row in rows], batch_first=True, padding_value=-100)
            loss = ctc_loss(self(padded), mask, targets, BLANK)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def transcribe(self, frames: Tensor) -> str:
        """The likeliest character of each of `(frames, dim)`, runs merged and blanks dropped."""
        best = self(frames).argmax(dim=-1).unique_consecutive()
        return "".join(self.characters[character] for character in best.tolist())


def frames_needed(text: str) -> int:
    """By CTC: one frame for each character, and a blank between equal ones."""
    return len(text) + sum(one == following for one, following in zip(text, text[1:]))


def summarize(
    counts: Mapping[str, np.ndarray], totals: np.ndarray, chance: float, widths: dict[str, int], seed: int = 0
) -> Probe:
    """
    Rates in percent of `counts` by representation, per `totals` of the same utterances, both `(utterances,)`.

    All are resampled alike, so that their difference is a paired one.
    """
    values = {name: 100.0 * float(of_name.sum() / totals.sum()) for name, of_name in counts.items()}
    drawn = {name: 100.0 * resampled_rates(of_name, totals, seed) for name, of_name in counts.items()}
    rates = {name: to_rate(values[name], drawn[name]) for name in values}
    difference = None
    if "context" in values:
        difference = to_rate(values["context"] - values["content"], drawn["context"] - drawn["content"])
    return Probe(rates, chance, difference, widths)


def to_rate(value: float, resampled: np.ndarray) -> Rate:
    low, high = np.percentile(resampled, PERCENTILES)
    return Rate(value, float(low), float(high))


def plot_probes(probes: Mapping[str, Probe], path: str | Path, title: str):
    """
    One panel per probe, by its title, one bar with its interval per representation, chance as a dashed line.

    Raises ValueError for no probe.
    """
    if not probes:
        raise ValueError("There is no probe to draw.")
    figure = Figure(figsize=(0.6 + 3.4 * len(probes), 3.6), layout="constrained")
    panels = figure.subplots(1, len(probes), squeeze=False)[0]
    names = list(dict.fromkeys(name for probe in probes.values() for name in probe.rates))
    colours = dict(zip(names, COLOURS))
    for axes, (label, probe) in zip(panels, probes.items()):
        _draw_probe(axes, label, probe, colours)
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)


def _draw_probe(axes: Axes, label: str, probe: Probe, colours: Mapping[str, str]):
    for place, (name, rate) in enumerate(probe.rates.items()):
        axes.bar(place, rate.value, 0.72, color=colours[name])
        axes.vlines(place, rate.low, rate.high, color="black", linewidth=1.2)
        style = dict(ha="center", va="bottom", fontsize=8)
        axes.annotate(f"{rate.value:.1f}", (place, rate.high), (0, 2), textcoords="offset points", **style)
    axes.axhline(probe.chance, color="#777777", linestyle="--", linewidth=1.0, label=f"chance, {probe.chance:.1f}")
    axes.set_xticks(range(len(probe.rates)), list(probe.rates), fontsize=8)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1))
