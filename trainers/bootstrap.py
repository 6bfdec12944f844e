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

NUM_RESAMPLES = 10_000  # the ends of a 95 % interval are then known to 3 % of a standard error
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
class Estimate:
    """A change in percent, or a difference of two in points, and the ends of its interval."""

    value: float
    low: float
    high: float

    @property
    def covers_zero(self) -> bool:
        """Whether the utterances leave open on which side of zero it lies."""
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
) -> Estimate:
    """
    Change of the WER from the `baseline` to the `changed` model in percent of the baseline's, below 0 where it fell,
    with its percentile interval.

    baseline, changed: one `WordErrors` for each training of the model, on the same utterances; the trainings' errors
    are averaged in every utterance. The interval says how far other utterances like these would move the change, not
    other trainings. It counts them as independent: of digit strings that share recordings it is too narrow.

    Raises:
        ValueError: no training, other utterances or other references, or a baseline with errors in so few utterances
            that some resample has none.
    """
    return to_estimate(*resampled_changes(baseline, changed, seed), confidence)


def bootstrap_growth(
    calm: tuple[Sequence[WordErrors], Sequence[WordErrors]],
    hard: tuple[Sequence[WordErrors], Sequence[WordErrors]],
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """
    By how many points the relative gain, the change of `paired_bootstrap` with its sign turned, is larger under the
    `hard` condition than under the `calm` one, with its percentile interval.

    calm, hard: the baseline's and the changed model's trainings, as for `paired_bootstrap`. The rows of all are the
    same utterances in the same order, and are resampled together; their samples differ from condition to condition.

    Raises:
        ValueError: as `paired_bootstrap`, and conditions with other references.
    """
    (before, changes_before), (after, changes_after) = (resampled_changes(*pair, seed) for pair in (calm, hard))
    if calm[0][0].words != hard[0][0].words:
        raise ValueError("The conditions were measured on different utterances: evaluate both on the same corpus.")
    return to_estimate(before - after, changes_before - changes_after, confidence)


def resampled_changes(
    baseline: Sequence[WordErrors], changed: Sequence[WordErrors], seed: int
) -> tuple[float, np.ndarray]:
    """The change of `paired_bootstrap`, and that in each resample `(resamples,)`. Raises ValueError as it does."""
    if not baseline or not changed:
        raise ValueError(f"Both models need a training; got {len(baseline)} and {len(changed)}.")
    first = baseline[0]
    if any(each.utterances != first.utterances or each.words != first.words for each in (*baseline, *changed)):
        raise ValueError(
            "The models were measured on different utterances: evaluate both on the same corpus and split."
        )
    old, new = (np.mean([each.errors for each in trainings], axis=0) for trainings in (baseline, changed))
    words = np.asarray(first.words)
    old_rates, new_rates = (resampled_rates(errors, words, seed) for errors in (old, new))
    if not old_rates.all():
        raise ValueError(
            f"The baseline makes errors in only {np.count_nonzero(old)} of {len(old)} utterances, too few for changes "
            "relative to them. Take more or harder utterances."
        )
    return 100.0 * float(new.sum() / old.sum() - 1), 100.0 * (new_rates / old_rates - 1)


def to_estimate(value: float, resampled: np.ndarray, confidence: float) -> Estimate:
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high))


def resampled_rates(counts: np.ndarray, totals: np.ndarray, seed: int) -> np.ndarray:
    """
    Counts per totals, both `(utterances,)`, in each resample of the utterances with replacement, `(resamples,)`.

    A seed draws the same utterances whatever the counts: two models' rates are paired, and two conditions'.
    """
    random, rates = np.random.default_rng(seed), []
    for _ in range(0, NUM_RESAMPLES, RESAMPLES_AT_ONCE):
        drawn = random.integers(0, len(totals), (RESAMPLES_AT_ONCE, len(totals)))
        rates.append(counts[drawn].sum(axis=1) / totals[drawn].sum(axis=1))
    return np.concatenate(rates)
