"""
How sure a difference of two word error rates is: a paired bootstrap over utterances.

Both models have transcribed the same utterances. Resamples draw utterances, and with each what both models got wrong
in it, so that what makes an utterance hard for both does not blur their difference (Bisani and Ney, "Bootstrap
estimates for confidence intervals in ASR performance evaluation", ICASSP 2004).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from rapidfuzz.distance import Levenshtein

from ..processing.text_normalization import normalize_text
from .metrics import NUM_RESAMPLES

RESAMPLES_AT_ONCE = 500  # 10 MB for LibriSpeech's test-clean


@dataclass(frozen=True)
class WordErrors:
    """
    What one model got wrong, by utterance.

    Args:
        utterances: what tells each from all others, such as `utterance_seed` of its samples.
        errors: substituted, missing and added words.
        words: of the reference.

    Raises:
        ValueError: lists of different lengths, none at all, or a reference without words.
    """

    utterances: list[int]
    errors: list[int]
    words: list[int]

    def __post_init__(self):
        lengths = {name: len(values) for name, values in asdict(self).items()}
        if len(set(lengths.values())) > 1 or not self.utterances:
            raise ValueError(f"Word errors need the same number of utterances, errors and words; got {lengths}.")
        if min(self.words) < 1:
            raise ValueError(f"Utterance {self.words.index(min(self.words))} has no words: leave it out.")

    @property
    def word_error_rate(self) -> float:
        """In percent, of all utterances together."""
        return 100.0 * sum(self.errors) / sum(self.words)


@dataclass(frozen=True)
class RelativeChange:
    """Change of a WER in percent of the baseline's WER, below 0 where it fell, and its interval's ends."""

    change: float
    low: float
    high: float

    @property
    def covers_zero(self) -> bool:
        """Whether the utterances leave open which of the two is better."""
        return self.low <= 0 <= self.high


def count_word_errors(utterances: Sequence[int], predictions: Sequence[str], references: Sequence[str]) -> WordErrors:
    """
    Word errors of each transcript, both sides normalised as for `WordErrorRate`, whose figure they add up to.

    Raises ValueError as `WordErrors`, also for different numbers of predictions and references.
    """
    given, expected = ([normalize_text(text).split() for text in texts] for texts in (predictions, references))
    errors = [Levenshtein.distance(*pair) for pair in zip(given, expected, strict=True)]
    return WordErrors(list(utterances), errors, [len(words) for words in expected])


def paired_bootstrap(
    baseline: Sequence[WordErrors], changed: Sequence[WordErrors], seed: int = 0, confidence: float = 0.95
) -> RelativeChange:
    """
    Relative change of the WER from the `baseline` to the `changed` model, with its percentile interval.

    baseline, changed: one `WordErrors` for each training of the model, on the same utterances; the trainings' errors
    are averaged in every utterance. The interval says how far other utterances like these would move the change, not
    other trainings. In each resample the difference of the two WERs is taken in percent of the WER that the baseline
    has on all utterances.

    Raises:
        ValueError: no training, other utterances or other references, or a baseline without an error.
    """
    if not baseline or not changed:
        raise ValueError(f"Both models need a training; got {len(baseline)} and {len(changed)}.")
    first = baseline[0]
    if any(each.utterances != first.utterances or each.words != first.words for each in (*baseline, *changed)):
        raise ValueError(
            "The models were measured on different utterances: evaluate both on the same corpus and split."
        )
    words = np.asarray(first.words, dtype=np.float64)
    old, new = (np.mean([each.errors for each in trainings], axis=0) for trainings in (baseline, changed))
    if not old.sum() > 0:
        raise ValueError("The baseline makes no error: there is no change relative to it. Take a harder corpus.")
    scale = 100.0 * words.sum() / old.sum()
    differences = resampled_rates(new - old, words, seed)
    low, high = scale * np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    return RelativeChange(scale * float((new - old).sum() / words.sum()), float(low), float(high))


def resampled_rates(counts: np.ndarray, totals: np.ndarray, seed: int) -> np.ndarray:
    """
    Counts per totals, both `(utterances,)`, in each resample of the utterances with replacement, `(resamples,)`.

    A seed draws the same utterances whatever the counts: two models' rates are paired.
    """
    random, rates = np.random.default_rng(seed), []
    for _ in range(0, NUM_RESAMPLES, RESAMPLES_AT_ONCE):
        drawn = random.integers(0, len(totals), (RESAMPLES_AT_ONCE, len(totals)))
        rates.append(counts[drawn].sum(axis=1) / totals[drawn].sum(axis=1))
    return np.concatenate(rates)
