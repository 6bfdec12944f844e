"""Measuring how well speech and noise are told apart: on clean/noisy pairs, and on the noise head's own classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..processing.feature_extraction_stable_token import StableTokenFeatureExtractor
from ..processing.noisy_pairs import check_pair
from .evaluation import feature_batches, transcribe
from .metrics import CodebookUsage, UnitEditDistance, WordErrorRate, relative_error_reduction

SPREAD_FRAMES = 2000  # two million distances estimate a mean well enough


@dataclass
class NoisyPairs:
    """
    Utterances twice: `noisy` and `clean` waveforms `(samples,)` at 16 kHz, of one length each; `texts`, and the class
    in `noise`, "" where it is unknown. `clean` is None for speech that was recorded in noise, as CHiME-4's `real`.
    """

    noisy: list[np.ndarray]
    clean: list[np.ndarray] | None
    texts: list[str]
    noise: list[str]

    def views(self) -> dict[str, list[np.ndarray]]:
        """What there is of `clean` and `noisy`."""
        return {"noisy": self.noisy} if self.clean is None else {"clean": self.clean, "noisy": self.noisy}

    def middle(self) -> int:
        """The row of median length."""
        return sorted(range(len(self.noisy)), key=lambda row: len(self.noisy[row]))[len(self.noisy) // 2]

    def recordings(self, row: int) -> dict[str, np.ndarray]:
        """The noisy halves of a row's clean one by their noise: its own, and the first in each other class."""
        found = {}
        for other in [row, *range(len(self.clean))]:
            if np.array_equal(self.clean[other], self.clean[row]):
                found.setdefault(self.noise[other] or "recorded noise", self.noisy[other])
        return found


def read_pairs(dataset: Dataset) -> NoisyPairs:
    """
    All rows `audio` (noisy), `text` and `clean_audio` or `noise` or both; a row that is mixed when read is read once,
    so that its label belongs to its noise.

    Raises:
        ValueError: neither `clean_audio` nor `noise`, a pair of two lengths, or one whose clean half is noisier.
    """
    if not {"clean_audio", "noise"} & set(dataset.column_names):
        raise ValueError(
            f"Expected pairs with a column clean_audio, or noisy speech with a column noise; got "
            f"{dataset.column_names}. Mix clean speech with noise (mix_pairs), or give a corpus of pairs."
        )
    columns = dataset[:]
    columns["text"] = [str(text) for text in columns["text"]]  # numpy's strings print as np.str_('...')
    clean = None
    if "clean_audio" in columns:
        for values in zip(*columns.values(), strict=True):
            check_pair(dict(zip(columns, values)))
        clean = [np.asarray(waveform, dtype=np.float32) for waveform in columns["clean_audio"]]
    return NoisyPairs(
        noisy=[np.asarray(waveform, dtype=np.float32) for waveform in columns["audio"]],
        clean=clean,
        texts=columns["text"],
        noise=[str(name or "") for name in columns.get("noise", [""] * len(dataset))],
    )


@dataclass
class LatentSpeech:
    """
    What the model makes of utterances, in their order and without padding.

    Args:
        codes: per utterance ids `(frames,)` at 25 Hz.
        latents, quantized: per utterance `(frames, dim)` before and after the quantizer, q_e(X) and Q(q_e(X)).
        noise_probabilities: `(utterances, classes)` of the noise head, `unknown` last; None without a head.
        noise_features: `(utterances, hidden)`, the head's penultimate layer; None without a head.
    """

    codes: list[Tensor]
    latents: list[Tensor]
    quantized: list[Tensor]
    noise_probabilities: Tensor | None
    noise_features: Tensor | None


@torch.no_grad()
def encode_latents(
    model: PreTrainedModel,
    feature_extractor: StableTokenFeatureExtractor,
    waveforms: list,
    batch_size: int = 32,
    title: str = "encode",
) -> LatentSpeech:
    """
    Latents, ids and noise posteriors of `waveforms` (16 kHz, at most 30 s) by a `DisentangledWhisperModel`.

    title: of the progress bar.
    Raises ValueError for a model without a quantizer, no waveform, and one beyond the model's window.
    """
    if not waveforms:
        raise ValueError("There is no waveform to encode.")
    was_training = model.training
    model.eval()
    encoded: dict[int, tuple] = {}
    for rows, features in feature_batches(waveforms, feature_extractor, model.device, batch_size, title):
        output = model(**features)  # `encode` takes any length, and so gives no verdict on the noise
        for index, row in enumerate(rows):
            real = output.attention_mask[index]
            frames = [states[index, real].cpu() for states in (output.audio_codes, output.latents, output.quantized)]
            head = [] if output.noise_logits is None else [output.noise_logits[index], output.noise_features[index]]
            encoded[row] = (*frames, *(values.float().cpu() for values in head))
    model.train(was_training)
    codes, latents, quantized, *head = zip(*(encoded[row] for row in sorted(encoded)))
    logits, features = map(torch.stack, head) if head else (None, None)
    return LatentSpeech(
        codes=list(codes),
        latents=[states.float() for states in latents],
        quantized=[states.float() for states in quantized],
        noise_probabilities=None if logits is None else logits.softmax(dim=-1),
        noise_features=features,
    )


def error_reductions(rates: Mapping[str, float], base: Mapping[str, float]) -> dict[str, float]:
    """
    RER in percent of noisy speech: `rer` and `rer/<class>` from what `word_error_rates` gave for a model and for its
    base on the same pairs. A class on which the base makes no error is left out.
    """
    noisy = [name for name in rates if name != "wer/clean" and base[name] > 0]
    return {name.replace("wer", "rer", 1): relative_error_reduction(rates[name], base[name]) for name in noisy}


def frame_distances(states: list[Tensor], references: list[Tensor]) -> list[Tensor]:
    """
    L2 between the states of two recordings of the same speech at each frame: per utterance `(frames,)`.

    states, references: per utterance `(frames, dim)`. Raises ValueError for utterances of different lengths.
    """
    for row, (one, other) in enumerate(zip(states, references, strict=True)):
        if one.shape != other.shape:
            raise ValueError(f"Utterance {row} has states {tuple(one.shape)} and {tuple(other.shape)}: no pair.")
    return [(one - other).norm(dim=-1) for one, other in zip(states, references)]


def frame_spread(states: list[Tensor], seed: int = 0) -> float:
    """
    Mean L2 between two different frames of `states` (per utterance `(frames, dim)`), over at most 2000 random ones:
    the unit in which distances of two models can be compared.

    Raises ValueError for fewer than two frames and where all are one point.
    """
    frames = torch.cat(states)
    drawn = torch.randperm(len(frames), generator=torch.Generator().manual_seed(seed))[:SPREAD_FRAMES]
    distances = torch.pdist(frames[drawn].double())
    if not bool((distances > 0).any()):
        raise ValueError(f"{len(frames)} frames have no spread to compare with: the latent space is one point.")
    return float(distances.mean())


def invariance_table(clean: LatentSpeech, noisy: LatentSpeech, codebook_size: int) -> dict[str, float]:
    """
    How far noise moves the speech part.

    Returns `latent_distance`, the mean L2 between clean and noisy latents over all frames, `code_distance`, the same
    between their codes (as in Fig. 3 of the paper), both also as `..._relative` to the mean distance of two different
    clean frames; `ued`, in percent; and the keys of `codebook_statistics` on clean speech.
    """
    spread = frame_spread(clean.latents)
    table = {
        "latent_distance": float(torch.cat(frame_distances(noisy.latents, clean.latents)).mean()),
        "code_distance": float(torch.cat(frame_distances(noisy.quantized, clean.quantized)).mean()),
    }
    table |= {f"{name}_relative": distance / spread for name, distance in table.items()}
    clean_codes, noisy_codes = ([codes.tolist() for codes in speech.codes] for speech in (clean, noisy))
    table |= UnitEditDistance().compute(predictions=noisy_codes, references=clean_codes)
    return table | CodebookUsage().compute(predictions=clean_codes, codebook_size=codebook_size)


def posterior_table(speech: LatentSpeech, prefix: str) -> dict[str, float]:
    """
    How sure the noise head is, as means over utterances: `<prefix>_posterior_max`, the highest probability, and
    `<prefix>_unknown`, that of `unknown`, in percent; `<prefix>_posterior_entropy` in nats, ln(classes) when uniform.
    """
    probabilities = speech.noise_probabilities.double()
    entropies = -torch.special.xlogy(probabilities, probabilities).sum(dim=-1)
    return {
        f"{prefix}_posterior_max": 100.0 * float(probabilities.amax(dim=-1).mean()),
        f"{prefix}_posterior_entropy": float(entropies.mean()),
        f"{prefix}_unknown": 100.0 * float(probabilities[:, -1].mean()),
    }


def noise_accuracy(probabilities: Tensor, noise: Sequence[str], classes: Sequence[str]) -> dict[str, float]:
    """
    How often the noise head names the class that was mixed in, in percent: `noise_accuracy`, and for each class that
    occurs `noise_accuracy/<class>`. A verdict of `unknown` is wrong.

    probabilities: `(utterances, classes)`; noise: the class of each utterance; classes: the head's, in its order,
    `unknown` last, which is no class of noise.
    Raises ValueError for no utterance, and for a label that the head has no class for.
    """
    *labels, _ = classes
    unknown = sorted(set(noise) - set(labels))
    if unknown or not noise:
        raise ValueError(
            f"The noise head knows {', '.join(labels)}; got {', '.join(map(repr, unknown)) or 'no utterance'}. "
            "Measure its accuracy on classes of its training."
        )
    right = [classes[best] == label for best, label in zip(probabilities.argmax(dim=-1).tolist(), noise, strict=True)]
    table = {"noise_accuracy": 100.0 * sum(right) / len(right)}
    for name in sorted(set(noise)):
        of_class = [hit for hit, label in zip(right, noise) if label == name]
        table[f"noise_accuracy/{name}"] = 100.0 * sum(of_class) / len(of_class)
    return table


def word_error_rates(
    recognizer: PreTrainedModel,
    feature_extractor: StableTokenFeatureExtractor,
    text_tokenizer: PreTrainedTokenizerBase,
    pairs: NoisyPairs,
    batch_size: int = 32,
    num_beams: int = 1,
) -> dict[str, float]:
    """
    WER in percent: `wer` on all noisy speech, `wer/<class>` on that of each known class, and `wer/clean` where there
    is clean speech.
    """
    parts = (recognizer, feature_extractor, text_tokenizer)
    noisy = transcribe(*parts, pairs.noisy, batch_size, num_beams)
    rates = {"wer": WordErrorRate().compute(predictions=noisy, references=pairs.texts)["wer"]}
    for name in sorted(set(pairs.noise) - {""}):
        rows = [row for row, label in enumerate(pairs.noise) if label == name]
        predictions, references = [noisy[row] for row in rows], [pairs.texts[row] for row in rows]
        rates[f"wer/{name}"] = WordErrorRate().compute(predictions=predictions, references=references)["wer"]
    if pairs.clean is not None:
        clean = transcribe(*parts, pairs.clean, batch_size, num_beams)
        rates["wer/clean"] = WordErrorRate().compute(predictions=clean, references=pairs.texts)["wer"]
    return rates
