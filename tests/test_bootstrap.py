"""Questions to the paired bootstrap: its figures, its interval, and what cannot be compared."""

import numpy as np
import pytest

from clearspeech.trainers.bootstrap import WordErrors, bootstrap_growth, count_word_errors, paired_bootstrap
from clearspeech.trainers.metrics import WordErrorRate


def make_errors(errors, words=None) -> WordErrors:
    return WordErrors(list(range(len(errors))), list(errors), words or [10] * len(errors))


def test_errors_of_utterances_add_up_to_the_word_error_rate():
    predictions = ["one two", "", "Three, four five", "six six six"]
    references = ["One two.", "one", "three five", "six"]
    errors = count_word_errors([7, 8, 9, 10], predictions, references)
    assert (errors.errors, errors.words) == ([0, 1, 1, 2], [2, 1, 2, 1])
    whole = WordErrorRate().compute(predictions=predictions, references=references)
    assert errors.word_error_rate == pytest.approx(whole["wer"])


def test_the_change_is_relative_to_the_baseline():
    found = paired_bootstrap([make_errors([4, 2, 4, 10])], [make_errors([3, 2, 3, 7])])
    assert found.value == pytest.approx(-25.0)
    assert found.low < -25.0 < found.high


def test_the_mean_over_trainings_is_compared():
    baseline = [make_errors([4, 6, 8]), make_errors([6, 4, 8])]  # on average 5, 5, 8
    assert paired_bootstrap(baseline, [make_errors([5, 5, 8])]).value == 0
    assert paired_bootstrap(baseline, [make_errors([4, 4, 7]), make_errors([4, 4, 7])]).value == pytest.approx(
        -100 / 6
    )


def test_the_interval_is_that_of_resampled_utterances():
    random = np.random.default_rng(1)
    words = random.integers(1, 12, 60)
    old, new = random.binomial(words, 0.3), random.binomial(words, 0.25)
    found = paired_bootstrap([make_errors(old, words.tolist())], [make_errors(new, words.tolist())])
    changes = []
    for _ in range(4000):  # one resample at a time
        drawn = random.integers(0, 60, 60)
        wers = [errors[drawn].sum() / words[drawn].sum() for errors in (old, new)]
        changes.append(100 * (wers[1] - wers[0]) / wers[0])
    expected = np.quantile(changes, [0.025, 0.975])
    np.testing.assert_allclose([found.low, found.high], expected, atol=2.0)


def test_utterances_that_are_hard_for_both_do_not_widen_the_interval():
    old = [2, 8] * 50  # easy ones and hard ones, and the other model makes half the errors in each
    paired = paired_bootstrap([make_errors(old)], [make_errors([errors // 2 for errors in old])])
    assert (paired.low, paired.value, paired.high) == pytest.approx((-50.0, -50.0, -50.0))


def test_the_interval_tells_a_clear_difference_from_an_unclear_one():
    random = np.random.default_rng(0)
    old = random.integers(1, 5, 200)
    clear = paired_bootstrap([make_errors(old.tolist())], [make_errors((old - 1).tolist())])
    unclear = paired_bootstrap([make_errors(old.tolist())], [make_errors(random.permutation(old).tolist())])
    assert not clear.covers_zero and unclear.covers_zero


def test_the_growth_is_the_louder_gain_minus_the_calm_one():
    calm = [make_errors([2, 4, 2, 4])], [make_errors([2, 3, 2, 4])]  # 12 to 11 errors
    hard = [make_errors([6, 8, 4, 6])], [make_errors([4, 5, 4, 5])]  # 24 to 18
    found = bootstrap_growth(calm, hard)
    assert found.value == pytest.approx(25 - 100 / 12)
    assert found.low < found.value < found.high
    assert bootstrap_growth(hard, calm).value == pytest.approx(-found.value)


def test_both_conditions_are_resampled_alike():
    """The gain differs from utterance to utterance, but by the same in both conditions: the growth is certain."""
    old, new = [8] * 60, [4, 8] * 30
    calm = [make_errors(old)], [make_errors(new)]
    hard = [make_errors([2 * each for each in old])], [make_errors([2 * each - 4 for each in new])]
    assert paired_bootstrap(*calm).high - paired_bootstrap(*calm).low > 5
    found = bootstrap_growth(calm, hard)
    assert (found.low, found.value, found.high) == pytest.approx((25.0, 25.0, 25.0))


def test_a_growth_of_other_utterances_or_without_errors_is_refused():
    ours, others = ([make_errors([3, 4], words)] for words in ([5, 5], [5, 6]))
    with pytest.raises(ValueError, match="conditions were measured on different utterances"):
        bootstrap_growth((ours, ours), (others, others))
    perfect = [make_errors([0, 0], [5, 5])]
    with pytest.raises(ValueError, match="errors in only 0 of 2 utterances"):
        bootstrap_growth((perfect, ours), (ours, ours))


def test_the_same_seed_draws_the_same_resamples():
    random = np.random.default_rng(0)
    models = [[make_errors(random.integers(0, 9, 100).tolist())] for _ in range(2)]
    assert paired_bootstrap(*models) == paired_bootstrap(*models)
    assert paired_bootstrap(*models) != paired_bootstrap(*models, seed=1)


@pytest.mark.parametrize(
    ("baseline", "changed", "message"),
    [
        ([], [make_errors([1])], "need a training; got 0 and 1"),
        ([make_errors([1, 2])], [make_errors([1])], "different utterances"),
        ([make_errors([1])], [WordErrors([7], [1], [10])], "different utterances"),
        ([make_errors([1])], [make_errors([1], [11])], "different utterances"),
        ([make_errors([0, 0])], [make_errors([0, 1])], "errors in only 0 of 2 utterances"),
        ([make_errors([0, 1, 0])], [make_errors([0, 1, 1])], "errors in only 1 of 3 utterances"),
    ],
)
def test_what_cannot_be_compared_is_refused(baseline, changed, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(baseline, changed)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (([], [], []), "same number of utterances, errors and words; got .*'utterances': 0"),
        (([1, 2], [0], [1]), "'utterances': 2, 'errors': 1, 'words': 1"),
        (([1, 2], [0, 1], [3, 0]), "Utterance 1 has no words"),
    ],
)
def test_word_errors_must_be_whole(parts, message):
    with pytest.raises(ValueError, match=message):
        WordErrors(*parts)
