"""Metrics: their equations against slow references, the paper's weighting, no files, and bad input."""

import collections
import math
import random

import jiwer
import numpy as np
import pytest
import torch

from clearspeech.trainers.metrics import (
    AnswerAccuracy,
    CharacterErrorRate,
    CodebookUsage,
    UnitEditDistance,
    VoteMargin,
    WordErrorRate,
    accuracy_interval,
    codebook_statistics,
    deduplicate,
    relative_error_reduction,
    vote_statistics,
)


def slow_edit_distance(left, right) -> int:
    table = [list(range(len(right) + 1))]
    for i, a in enumerate(left, start=1):
        row = [i]
        for j, b in enumerate(right, start=1):
            row.append(min(table[-1][j] + 1, row[-1] + 1, table[-1][j - 1] + (a != b)))
        table.append(row)
    return table[-1][-1]


@pytest.fixture(scope="module")
def code_pairs() -> tuple[list[list[int]], list[list[int]]]:
    draw = random.Random(0)
    clean = [[draw.randrange(8) for _ in range(draw.randrange(1, 40))] for _ in range(30)]
    noisy = [
        [code for code in codes if draw.random() > 0.1] + [draw.randrange(8)] * draw.randrange(3) for codes in clean
    ]
    return noisy, clean


def test_ued_is_corpus_edits_over_corpus_clean_codes(code_pairs):
    noisy, clean = code_pairs
    edits = sum(slow_edit_distance(a, b) for a, b in zip(noisy, clean))
    expected = 100 * edits / sum(len(codes) for codes in clean)
    assert UnitEditDistance().compute(predictions=noisy, references=clean)["ued"] == pytest.approx(expected)


def test_ued_equals_the_authors_weighted_mean_of_jiwer_rates(code_pairs):
    noisy, clean = code_pairs
    rates = [jiwer.wer(" ".join(map(str, b)), " ".join(map(str, a))) for a, b in zip(noisy, clean)]
    expected = 100 * np.average(rates, weights=[len(codes) for codes in clean])
    assert UnitEditDistance().compute(predictions=noisy, references=clean)["ued"] == pytest.approx(expected)


def test_deduplicated_ued_merges_runs_on_both_sides(code_pairs):
    assert deduplicate([5, 5, 7, 5, 5, 5]) == [5, 7, 5]
    metric, runs = UnitEditDistance(), {"predictions": [[1, 1, 1, 2]], "references": [[1, 2, 2]]}
    assert metric.compute(**runs, dedup=True) == {"ued": 0.0}
    assert metric.compute(**runs)["ued"] == pytest.approx(100 * 2 / 3)
    noisy, clean = ([deduplicate(codes) for codes in side] for side in code_pairs)
    expected = metric.compute(predictions=noisy, references=clean)
    assert metric.compute(predictions=code_pairs[0], references=code_pairs[1], dedup=True) == expected


def test_ued_of_lost_and_of_added_codes():
    metric = UnitEditDistance()
    assert metric.compute(predictions=[[]], references=[[1, 2]]) == {"ued": 100.0}
    assert metric.compute(predictions=[[1, 2, 3, 4, 5]], references=[[1, 2]]) == {"ued": 150.0}


def test_batches_add_up_and_arrays_and_tensors_serve(code_pairs):
    noisy, clean = code_pairs
    metric = UnitEditDistance()
    for start in range(0, 30, 10):
        batch = slice(start, start + 10)
        metric.add_batch(
            predictions=[np.array(codes, dtype=np.int64) for codes in noisy[batch]],
            references=[torch.tensor(codes) for codes in clean[batch]],
        )
    assert metric.compute() == UnitEditDistance().compute(predictions=noisy, references=clean)


def test_wer_and_cer_count_corpus_edits_after_normalisation():
    references, predictions = ["Don't stop, Mr. Smith!", "YES"], ["dont stop mr smith", "yes yes"]
    words = ["don't", "stop", "mr", "smith"]
    edits = slow_edit_distance(words, predictions[0].split()) + 1
    assert WordErrorRate().compute(predictions=predictions, references=references)["wer"] == pytest.approx(
        100 * edits / 5
    )
    edits, characters = 1 + 4, len(" ".join(words)) + 3
    cer = CharacterErrorRate().compute(predictions=predictions, references=references)["cer"]
    assert cer == pytest.approx(100 * edits / characters)


def test_a_silent_recogniser_has_a_wer_of_100():
    assert WordErrorRate().compute(predictions=["", ""], references=["one two", "three"]) == {"wer": 100.0}


def test_codebook_statistics_follow_their_definitions():
    codes = [[0, 0, 3], [3, 5, 0], []]
    counts = collections.Counter(code for utterance in codes for code in utterance)
    entropy = -sum(n / 6 * math.log2(n / 6) for n in counts.values())
    expected = {"codebook_usage": 100 * 3 / 8, "codebook_perplexity": 2**entropy, "codebook_entropy": entropy}
    assert CodebookUsage().compute(predictions=codes, codebook_size=8) == pytest.approx(expected)
    assert codebook_statistics([3, 0, 0, 2, 0, 1, 0, 0]) == pytest.approx(expected)


def test_even_use_has_full_perplexity_and_a_single_code_a_perplexity_of_one():
    even = codebook_statistics(torch.full((8192,), 7))
    assert even == pytest.approx({"codebook_usage": 100.0, "codebook_perplexity": 8192.0, "codebook_entropy": 13.0})
    collapsed = codebook_statistics(torch.eye(4)[0])
    assert collapsed == {"codebook_usage": 25.0, "codebook_perplexity": 1.0, "codebook_entropy": 0.0}


def test_vote_margin_is_the_mean_absolute_score():
    signs = torch.randn(5, 40, 13, generator=torch.Generator().manual_seed(0)).sign()  # voters, frames, bits
    votes = signs.mean(dim=0)
    statistics = VoteMargin().compute(predictions=[votes[:10], votes[10:]])
    unanimous = [abs(sum(column)) == 5 for column in signs.flatten(1).T.tolist()]
    assert statistics["vote_margin"] == pytest.approx(float(signs.sum(dim=0).abs().mean() / 5))
    assert statistics["vote_margin_per_bit"] == pytest.approx((signs.sum(dim=0).abs().mean(dim=0) / 5).tolist())
    assert statistics["unanimous_bits"] == pytest.approx(100 * np.mean(unanimous))
    assert vote_statistics(signs[0])["unanimous_bits"] == 100.0  # a single voter


def test_relative_error_reduction():
    assert relative_error_reduction(error=10.0, baseline=40.0) == 75.0
    assert relative_error_reduction(error=50.0, baseline=40.0) == -25.0
    with pytest.raises(ValueError, match="got 0"):
        relative_error_reduction(1.0, 0.0)


def test_metrics_work_offline_and_leave_nothing_behind(tmp_path):
    for metric, inputs in (
        (UnitEditDistance, {"predictions": [[1]], "references": [[1]]}),
        (WordErrorRate, {"predictions": ["a"], "references": ["a"]}),
        (VoteMargin, {"predictions": [[[1.0]]]}),
    ):
        metric(cache_dir=str(tmp_path)).compute(**inputs)
    assert not list(tmp_path.iterdir())
    on_disk = UnitEditDistance(cache_dir=str(tmp_path), keep_in_memory=False)
    assert on_disk.compute(predictions=[[1]], references=[[1]]) == {"ued": 0.0}
    assert list(tmp_path.iterdir())


def test_several_processes_in_memory_are_refused():
    with pytest.raises(ValueError, match="num_process"):
        UnitEditDistance(num_process=2, process_id=0)


@pytest.mark.parametrize(
    ("metric", "inputs", "message"),
    [
        (UnitEditDistance, {"predictions": [], "references": []}, "No utterance"),
        (UnitEditDistance, {"predictions": [[1], [1]], "references": [[1], []]}, r"References \[1\]"),
        (UnitEditDistance, {"predictions": [[1]], "references": [[1], [2]]}, r"\(1\) and references \(2\)"),
        (UnitEditDistance, {"predictions": [[1, -1]], "references": [[1]]}, "padding"),
        (WordErrorRate, {"predictions": [], "references": []}, "No utterance"),
        (WordErrorRate, {"predictions": ["a"], "references": ["... !"]}, r"References \[0\]"),
        (WordErrorRate, {"predictions": ["a"], "references": ["a", "b"]}, r"\(1\) and references \(2\)"),
        (CharacterErrorRate, {"predictions": ["a"], "references": [""]}, r"References \[0\]"),
        (CharacterErrorRate, {"predictions": [["a"]], "references": ["a"]}, "expected format"),
        (CodebookUsage, {"predictions": [[4]], "codebook_size": 4}, r"0\.\.3, got 4\.\.4"),
        (CodebookUsage, {"predictions": [[-1]], "codebook_size": 4}, "padding"),
        (CodebookUsage, {"predictions": [[]], "codebook_size": 4}, "at least one valid frame"),
        (VoteMargin, {"predictions": []}, "at least one frame"),
        (VoteMargin, {"predictions": [[[0.5, 1.5]]]}, r"-1\.\.1"),
        (VoteMargin, {"predictions": [[[math.nan]]]}, "NaN"),
    ],
)
def test_bad_input_is_named_and_the_metric_stays_usable(metric, inputs, message):
    broken = metric()
    with pytest.raises(ValueError, match=message):
        broken.compute(**inputs)
    if metric is UnitEditDistance:
        assert broken.compute(predictions=[[1, 2]], references=[[1, 3]]) == {"ued": 50.0}


def test_bad_counts_are_refused():
    with pytest.raises(ValueError, match="non-negative"):
        codebook_statistics([-1, 2])
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        codebook_statistics(torch.ones(2, 2))


# --- answers ---


def test_an_answer_is_right_when_it_is_the_class_and_nothing_else():
    references, answers = ["sad", "happy", "happy", "calm"], ["Sad.", "happy", "sad", "happy or calm"]
    found = AnswerAccuracy().compute(predictions=answers, references=references)
    assert found["accuracy"] == 50.0
    assert found["majority"] == 50.0  # always "happy"
    assert found["unparsed"] == 25.0
    assert found["accuracy_low"] < 50.0 < found["accuracy_high"]
    found = AnswerAccuracy().compute(predictions=answers, references=references, speakers=["a", "a", "a", "b"])
    assert found["accuracy_worst_speaker"] == 0.0
    assert found["accuracy_best_speaker"] == pytest.approx(200 / 3)


def test_the_interval_is_that_of_resampled_utterances():
    hits = np.arange(240) < 90
    random = np.random.default_rng(1)
    means = [100 * random.choice(hits, len(hits)).mean() for _ in range(4000)]
    assert accuracy_interval(90, 240) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.5)


def test_the_interval_shrinks_with_more_utterances_and_is_open_where_all_are_right_or_wrong():
    few, many = (np.ptp(accuracy_interval(share, 4 * share)) for share in (20, 2000))
    assert many < few / 5
    (lowest, none), (all_right, highest) = accuracy_interval(0, 80), accuracy_interval(80, 80)
    assert lowest == 0.0 and 2 < none < 6 and 94 < all_right < 98 and highest == 100.0


@pytest.mark.parametrize("counts", [(0, 0), (3, 2), (-1, 2)])
def test_an_interval_of_impossible_counts_is_refused(counts):
    with pytest.raises(ValueError, match=f"got {counts[0]} of {counts[1]}"):
        accuracy_interval(*counts)


def test_answers_without_a_class_are_refused():
    with pytest.raises(ValueError, match="No utterance"):
        AnswerAccuracy().compute(predictions=[], references=[])
    with pytest.raises(ValueError, match=r"References \[1\]"):
        AnswerAccuracy().compute(predictions=["sad", "sad"], references=["sad", ""])
