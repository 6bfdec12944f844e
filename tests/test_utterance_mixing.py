"""Questions to mixed utterances: the equation, the pairs, what stays, what is refused."""

import numpy as np
import pytest
from datasets import Dataset, IterableDataset
from tiny_corpora import column

from clearspeech.processing.corpora import load_corpus
from clearspeech.processing.utterance_mixing import UtteranceMixer, draw_partners, mix_utterances

LENGTHS = (4000, 5200, 8100, 3000)


@pytest.fixture
def speech(make_speech) -> Dataset:
    rows = [
        {"audio": make_speech(length, seed) * (seed + 1), "text": f"text {seed}", "speaker": f"s{seed}"}
        for seed, length in enumerate(LENGTHS)
    ]
    return Dataset.from_list(rows).with_format("numpy", columns=["audio"], output_all_columns=True)


def normalized(waveform: np.ndarray) -> np.ndarray:
    return waveform / np.sqrt(np.mean(np.square(waveform, dtype=np.float64)))


def test_a_mixed_utterance_is_the_weighted_sum_of_two_of_unit_power(speech):
    mixed = mix_utterances(speech, 0.25)
    shorter = longer = 0
    for row, partner in enumerate(draw_partners(4, seed=0)):
        first, second = normalized(speech[row]["audio"]), normalized(speech[partner]["audio"])
        aligned = np.zeros(len(first))
        aligned[: len(second)] = second[: len(first)]
        np.testing.assert_allclose(mixed[row]["audio"], 0.75 * first + 0.25 * aligned, atol=1e-5)
        assert mixed[row]["audio"].dtype == np.float32
        shorter, longer = shorter + (len(second) < len(first)), longer + (len(second) > len(first))
    assert shorter and longer  # clipped and followed by silence


def test_text_speaker_length_and_order_stay(speech):
    mixed = mix_utterances(speech, 0.3)
    assert set(mixed.column_names) == {"audio", "text", "speaker"}
    assert [(row["text"], row["speaker"], len(row["audio"])) for row in mixed] == [
        (f"text {seed}", f"s{seed}", length) for seed, length in enumerate(LENGTHS)
    ]


def test_at_rate_zero_an_utterance_is_normalized_only(speech):
    for row, original in zip(mix_utterances(speech, 0.0), speech):
        np.testing.assert_allclose(row["audio"], normalized(original["audio"]), atol=1e-6)


def test_all_rates_and_repetitions_meet_the_same_pairs(speech):
    low, high, again = (mix_utterances(speech, rate) for rate in (0.1, 0.3, 0.3))
    for row, original in enumerate(speech):
        first = normalized(original["audio"])
        np.testing.assert_array_equal(high[row]["audio"], again[row]["audio"])
        added = [(mixed[row]["audio"] - (1 - rate) * first) / rate for mixed, rate in ((low, 0.1), (high, 0.3))]
        np.testing.assert_allclose(*added, atol=1e-4)
    assert draw_partners(100, seed=1) != draw_partners(100, seed=0) == draw_partners(100, seed=0)


@pytest.mark.parametrize("num_rows", [2, 3, 10, 101])
def test_nobody_is_mixed_with_itself_and_everybody_once(num_rows):
    for seed in range(20):
        partners = draw_partners(num_rows, seed)
        assert sorted(partners) == list(range(num_rows))
        assert all(partner != row for row, partner in enumerate(partners))


def test_rows_are_the_same_in_any_order_and_texts_are_listed_without_mixing(speech, monkeypatch):
    mixed = mix_utterances(speech, 0.25)
    for row in mixed.shuffle(seed=1).select([3, 1]):
        np.testing.assert_array_equal(row["audio"], mixed[int(row["text"].split()[1])]["audio"])
    monkeypatch.delattr(UtteranceMixer, "mix")
    assert column(mixed, "text") == [f"text {seed}" for seed in range(4)]


def test_a_corpus_that_is_decoded_when_read_mixes_too():
    corpus = load_corpus("embedded", "test").select(range(3))
    mixed = mix_utterances(corpus, 0.0)
    for row, original in zip(mixed, corpus, strict=True):
        np.testing.assert_allclose(row["audio"], normalized(original["audio"]), atol=1e-5)
        assert row["text"] == original["text"]


def test_what_cannot_be_mixed_is_refused(speech):
    for rate in (-0.1, 0.6, float("nan")):
        with pytest.raises(ValueError, match=rf"0\.\.0\.5, .* got {rate}"):
            mix_utterances(speech, rate)
    with pytest.raises(ValueError, match="at least two utterances, got 1"):
        mix_utterances(speech.select([0]), 0.1)
    with pytest.raises(ValueError, match="got IterableDataset"):
        mix_utterances(IterableDataset.from_generator(lambda: iter(())), 0.1)
    with pytest.raises(ValueError, match="clean_audio"):
        mix_utterances(speech.add_column("clean_audio", [[0.1]] * 4), 0.1)


def test_a_silent_utterance_is_named():
    silent = Dataset.from_dict({"audio": [[0.1, -0.1], [0.0, 0.0]], "text": ["a", "b"]})
    with pytest.raises(ValueError, match="row 1 is silent"):
        mix_utterances(silent, 0.1)[0]
