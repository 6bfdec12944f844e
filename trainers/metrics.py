"""
Metrics of the suite as `evaluate.Metric` classes: unit edit distance, WER, CER, accuracy of answers, codebook usage,
vote margin.

    UnitEditDistance().compute(predictions=noisy_codes, references=clean_codes)  # {"ued": 10.2}

All rates are in percent. The classes are made directly, never through `evaluate.load`, which asks the Hub. They keep
what they are given in memory and leave no file or folder behind. Under several processes gather the predictions first,
as `Trainer.evaluate` does; `keep_in_memory=False` brings back evaluate's own exchange through files.
"""

import itertools
import math
import os
from collections import Counter
from collections.abc import Sequence

import datasets
import evaluate
import jiwer
import numpy as np
import torch
from rapidfuzz.distance import Levenshtein
from scipy.stats import binomtest
from torch import Tensor

from ..processing.text_normalization import normalize_text

CODE_LISTS = datasets.Sequence(datasets.Value("int64"))
UNANIMOUS = 1.0 - 1e-3  # a mean score of +-1; the next one below is 1 - 2 / voters


class InMemoryMetric(evaluate.Metric):
    """An `evaluate.Metric` that keeps its inputs in memory and touches no file, unless keep_in_memory is False."""

    def __init__(self, *arguments, keep_in_memory: bool = True, **keywords):
        self.keep_in_memory = keep_in_memory  # read by _build_data_dir, which the base class calls early
        super().__init__(*arguments, keep_in_memory=keep_in_memory, **keywords)

    def _build_data_dir(self) -> str:
        if not self.keep_in_memory:
            return super()._build_data_dir()
        return os.path.join(self._data_dir_root, self.name, self.config_name)  # named, not made

    def _describe(self, inputs: dict[str, datasets.Value | datasets.Sequence]) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation="",
            inputs_description=type(self)._compute.__doc__,
            features=datasets.Features(inputs),
        )


class UnitEditDistance(InMemoryMetric):
    """
    UED: edits between the units of noisy and of clean speech, per clean unit of the corpus, in percent.

    It is the mean of the utterances' rates weighted by their numbers of clean units, as in the authors' evaluation.
    """

    def _info(self) -> evaluate.MetricInfo:
        return self._describe({"predictions": CODE_LISTS, "references": CODE_LISTS})

    def _compute(
        self, predictions: list[list[int]], references: list[list[int]], dedup: bool = False
    ) -> dict[str, float]:
        """
        predictions, references: for each utterance the codes of its noisy and its clean speech, without padding.
        dedup: first merge runs of one code (NAST); the default compares raw codes (StableToken).

        Returns `ued`. Raises ValueError for no utterance, one without clean codes, and negative codes (padding).
        """
        _check_not_empty(references)
        _check_codes(itertools.chain(predictions, references))
        if dedup:
            predictions, references = map(deduplicate, predictions), [deduplicate(codes) for codes in references]
        edits = sum(map(Levenshtein.distance, predictions, references))
        return {"ued": 100.0 * edits / sum(map(len, references))}


class WordErrorRate(InMemoryMetric):
    """WER: word edits per reference word of the corpus, in percent, both sides normalised by `normalize_text`."""

    def _info(self) -> evaluate.MetricInfo:
        return self._describe({"predictions": datasets.Value("string"), "references": datasets.Value("string")})

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        """
        predictions, references: one transcript for each utterance.

        Returns `wer`. Raises ValueError for no utterance and for a reference that is empty once normalised.
        """
        return {"wer": 100.0 * jiwer.wer(*_normalize(predictions, references))}


class CharacterErrorRate(InMemoryMetric):
    """CER: character edits per reference character of the corpus, in percent, normalised by `normalize_text`."""

    def _info(self) -> evaluate.MetricInfo:
        return self._describe({"predictions": datasets.Value("string"), "references": datasets.Value("string")})

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        """
        predictions, references: one transcript for each utterance; spaces count as characters.

        Returns `cer`. Raises ValueError for no utterance and for a reference that is empty once normalised.
        """
        return {"cer": 100.0 * jiwer.cer(*_normalize(predictions, references))}


class AnswerAccuracy(InMemoryMetric):
    """How often a written answer names the right class, in percent, both normalised by `normalize_text`."""

    def _info(self) -> evaluate.MetricInfo:
        return self._describe({"predictions": datasets.Value("string"), "references": datasets.Value("string")})

    def _compute(
        self, predictions: list[str], references: list[str], speakers: Sequence[str] | None = None
    ) -> dict[str, float]:
        """
        predictions, references: for each utterance the answer and the name of its class. Classes are those that occur
        in the references; an answer that is no class's name is wrong. speakers: who says it, where that is known.

        Returns `accuracy`; `accuracy_low` and `accuracy_high`, its 95 % interval over utterances
        (`accuracy_interval`); `majority`, the accuracy of always answering the most frequent class; `unparsed`, the
        share of answers that are no class; with speakers, `accuracy_worst_speaker` and `accuracy_best_speaker`. Raises
        ValueError for no utterance, and for an empty reference.
        """
        references, predictions = _normalize(predictions, references)
        counts, total = Counter(references), len(references)
        right = np.array([*map(str.__eq__, predictions, references)])
        low, high = accuracy_interval(int(right.sum()), total)
        of_speakers = {}
        if speakers is not None:
            rates = [100.0 * float(right[np.array(speakers) == each].mean()) for each in set(speakers)]
            of_speakers = {"accuracy_worst_speaker": min(rates), "accuracy_best_speaker": max(rates)}
        return of_speakers | {
            "accuracy": 100.0 * float(right.mean()),
            "accuracy_low": low,
            "accuracy_high": high,
            "majority": 100.0 * max(counts.values()) / total,
            "unparsed": 100.0 * sum(answer not in counts for answer in predictions) / total,
        }


class CodebookUsage(InMemoryMetric):
    """How much of a codebook is used, see `codebook_statistics`."""

    def _info(self) -> evaluate.MetricInfo:
        return self._describe({"predictions": CODE_LISTS})

    def _compute(self, predictions: list[list[int]], codebook_size: int) -> dict[str, float]:
        """
        predictions: for each utterance its codes without padding; codebook_size: number of codes there are.

        Returns the keys of `codebook_statistics`. Raises ValueError for no code and codes outside the codebook.
        """
        codes = torch.tensor([code for utterance in predictions for code in utterance], dtype=torch.int64)
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < codebook_size:
            raise ValueError(
                f"Codes must lie in 0..{codebook_size - 1}, got {int(codes.min())}..{int(codes.max())}: "
                "cut padding off, and check codebook_size."
            )
        return codebook_statistics(torch.bincount(codes, minlength=codebook_size))


class VoteMargin(InMemoryMetric):
    """How clearly the voters of a Voting-LFQ agree, see `vote_statistics`."""

    def _info(self) -> evaluate.MetricInfo:
        return self._describe({"predictions": datasets.Sequence(datasets.Sequence(datasets.Value("float32")))})

    def _compute(self, predictions: list[list[list[float]]]) -> dict[str, float | list[float]]:
        """
        predictions: for each utterance its votes `(frames, bits)` without padding.

        Returns the keys of `vote_statistics`. Raises ValueError for no frame, and for votes outside -1..1.
        """
        return vote_statistics(torch.tensor([frame for utterance in predictions for frame in utterance]))


def codebook_statistics(counts: Tensor | Sequence[int]) -> dict[str, float]:
    """
    What counts of codes `(codebook_size,)` over valid frames (and all processes) say about a codebook's use.

    Returns `codebook_usage`, the percentage of codes met at least once, `codebook_entropy` of their distribution in
    bits, and `codebook_perplexity`, 2 to that power: the number of equally frequent codes of the same entropy.
    Raises ValueError for another shape, for negative counts and where nothing was counted.
    """
    counts = torch.as_tensor(counts).detach().to("cpu", torch.float64)
    if counts.dim() != 1 or not bool((counts >= 0).all()):
        raise ValueError(f"counts must be non-negative (codebook_size,), got shape {tuple(counts.shape)}.")
    if not bool(counts.sum() > 0):
        raise ValueError(f"No code was counted in a codebook of {len(counts)}: give at least one valid frame.")
    probabilities = counts / counts.sum()
    entropy = float(-torch.special.xlogy(probabilities, probabilities).sum() / math.log(2))
    return {
        "codebook_usage": 100.0 * float((counts > 0).double().mean()),
        "codebook_perplexity": 2.0**entropy,
        "codebook_entropy": entropy,
    }


def vote_statistics(votes: Tensor) -> dict[str, float | list[float]]:
    """
    What mean scores `(frames, bits)` of the voters in [-1, 1], over valid frames, say about their agreement.

    Returns `vote_margin`, the mean of |score| (1 where all agree), `vote_margin_per_bit`, the same for each bit, and
    `unanimous_bits`, the percentage of bits on which all voters agreed.
    Raises ValueError for another shape, no frame, and votes outside [-1, 1] (or NaN).
    """
    margins = votes.detach().to("cpu", torch.float64).abs()
    if margins.dim() != 2 or margins.numel() == 0:
        raise ValueError(f"votes must be (frames, bits) with at least one frame, got shape {tuple(margins.shape)}.")
    if not bool((margins <= 1 + 1e-6).all()):
        raise ValueError("votes are mean scores and must lie in -1..1; these hold larger values or NaN.")
    return {
        "vote_margin": float(margins.mean()),
        "vote_margin_per_bit": margins.mean(dim=0).tolist(),
        "unanimous_bits": 100.0 * float((margins >= UNANIMOUS).double().mean()),
    }


def accuracy_interval(num_right: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """
    Wilson's score interval of an accuracy over utterances: lowest and highest in percent.

    It says how far other utterances of these speakers would move the accuracy, not other speakers. Raises ValueError
    unless 0 <= num_right <= total and total >= 1.
    """
    if not 0 <= num_right <= total or total < 1:
        raise ValueError(f"An accuracy needs 0 <= num_right <= total and total >= 1; got {num_right} of {total}.")
    low, high = binomtest(num_right, total).proportion_ci(confidence, method="wilson")
    return 100.0 * float(low), 100.0 * float(high)


def relative_error_reduction(error: float, baseline: float) -> float:
    """
    RER: how far `error` lies below `baseline`, in percent of the baseline; negative where it lies above.

    Raises ValueError unless the baseline is positive.
    """
    if not baseline > 0:
        raise ValueError(f"The baseline's error must be positive, got {baseline}.")
    return 100.0 * (baseline - error) / baseline


def deduplicate(codes: Sequence[int]) -> list[int]:
    """The codes with every run of one code merged into one: [5, 5, 7, 5] -> [5, 7, 5]."""
    return [code for code, _ in itertools.groupby(codes)]


def _normalize(predictions: list[str], references: list[str]) -> tuple[list[str], list[str]]:
    """(references, predictions), in the order of jiwer, normalised."""
    normalized = [normalize_text(text) for text in references]
    _check_not_empty(normalized)
    return normalized, [normalize_text(text) for text in predictions]


def _check_not_empty(references: list[str] | list[list[int]]) -> None:
    empty = [index for index, reference in enumerate(references) if not reference]
    if not references:
        raise ValueError("No utterance was given: there is no rate over nothing.")
    if empty:
        raise ValueError(f"References {empty[:10]} ({len(empty)} in all) are empty: leave these utterances out.")


def _check_codes(utterances: itertools.chain) -> None:
    if any(code < 0 for codes in utterances for code in codes):
        raise ValueError("Codes must not be negative: cut the padding off with the attention mask.")
