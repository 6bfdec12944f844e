"""Questions to pairs of noisy and clean speech: how they are mixed and collated, and which pairs are refused."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_corpora import SHARED_DATA, needs_shared_data
from torch.utils.data import DataLoader

from clearspeech.processing.corpora import leave_out_long, load_corpus, load_noise
from clearspeech.processing.noisy_pairs import NoisyPairCollator, is_swapped, mix_pairs, noise_perturber
from clearspeech.processing.perturbation import TRAINING_PERTURBATIONS, Perturber, utterance_seed

CLASSES = ["hum", "hiss", "unknown"]


def arrays(rows: list[dict]) -> Dataset:
    return Dataset.from_list(rows).with_format("numpy", columns=["audio"], output_all_columns=True)


@pytest.fixture
def noise() -> Dataset:
    """Noise of three classes, told by their sign: hum is negative, hiss positive, what has no name neither."""
    random = np.random.default_rng(0)
    signs = (("hum", -1.0), ("hiss", 1.0), ("hiss", 1.0), ("", 0.0))
    return arrays(
        [{"audio": (sign + 0.1 * random.standard_normal(900)).astype("f4"), "noise": name} for name, sign in signs]
    )


@pytest.fixture
def speech(make_speech) -> Dataset:
    lengths = (4000, 5200, 8100)
    rows = [{"audio": make_speech(length, seed), "text": "ab" * (seed + 1)} for seed, length in enumerate(lengths)]
    return arrays([row | {"speaker": f"s{len(row['text'])}", "num_samples": len(row["audio"])} for row in rows])


@pytest.fixture
def collator(tokenizer) -> NoisyPairCollator:
    return NoisyPairCollator(tokenizer, tokenizer.bos_token_id, noise_classes=CLASSES)


@pytest.fixture
def pair(make_speech) -> dict:
    clean = make_speech(8000)
    noisy = clean + 0.01 * np.random.default_rng(1).standard_normal(8000).astype("f4")
    return {"audio": noisy, "clean_audio": clean, "text": "hello", "speaker": "s7", "noise": "hiss"}


# mixing


def test_a_pair_is_the_utterance_and_the_utterance_in_noise_of_the_class_it_names(speech, noise):
    pairs = mix_pairs(speech, noise_perturber(noise, [0.0, 10.0], ["hum", "hiss"]), copies=8)
    assert len(pairs) == 24
    assert set(pairs.column_names) == {"audio", "clean_audio", "noise", "text", "speaker", "num_samples"}
    met = set()
    for number, row in enumerate(pairs):
        original = speech[number % 3]
        np.testing.assert_array_equal(row["clean_audio"], original["audio"])
        assert (row["text"], row["speaker"], row["num_samples"]) == (
            original["text"],
            original["speaker"],
            len(row["audio"]),
        )
        added = row["audio"] - row["clean_audio"]
        assert row["audio"].dtype == row["clean_audio"].dtype == np.float32
        assert (added.mean() > 0) == (row["noise"] == "hiss")
        snr_db = 10 * np.log10(np.mean(row["clean_audio"] ** 2) / np.mean(added**2))
        assert min(abs(snr_db), abs(snr_db - 10)) < 0.1
        met.add((row["noise"], round(snr_db)))
    assert len(met) == 4


def test_a_row_is_the_same_in_any_order_subset_and_process(speech, noise):
    pairs = mix_pairs(speech, noise_perturber(noise, [5.0]), copies=2)
    rows = list(pairs)
    shuffled = pairs.shuffle(seed=1).select([4, 0])
    for row in [*shuffled, *DataLoader(pairs, batch_size=None, num_workers=1, collate_fn=lambda row: row)]:
        same = [each for each in rows if np.array_equal(each["audio"], row["audio"])]
        assert len(same) == 1 and same[0]["noise"] == row["noise"]
        np.testing.assert_array_equal(same[0]["clean_audio"], row["clean_audio"])


def test_copies_differ_and_noise_comes_from_the_clean_samples_and_the_number_of_the_copy(speech, noise):
    perturber = noise_perturber(noise, [5.0])
    pairs = mix_pairs(speech, perturber, copies=2)
    assert not np.array_equal(pairs[0]["audio"], pairs[3]["audio"])
    clean = torch.tensor(speech[0]["audio"])
    by_hand, name, _ = perturber.perturb(clean, utterance_seed(clean, salt=1))
    np.testing.assert_array_equal(pairs[3]["audio"], by_hand.numpy())
    assert pairs[3]["noise"] == name
    fewer = mix_pairs(speech.select([2, 0]), perturber)
    np.testing.assert_array_equal(fewer[1]["audio"], pairs[0]["audio"])


def test_texts_are_listed_without_mixing_and_classes_without_the_rest(speech, noise, monkeypatch):
    pairs = mix_pairs(speech, noise_perturber(noise, [5.0]), copies=2)
    assert list(pairs.select_columns("noise")["noise"]) == [row["noise"] for row in pairs]
    monkeypatch.delattr(Perturber, "perturb")
    assert list(pairs.select_columns(["text", "speaker"])["text"]) == ["ab", "abab", "ababab"] * 2


def test_encoded_decoded_and_shortened_corpora_give_the_same_pairs(noise):
    perturber = noise_perturber(noise, [5.0])
    early, late = (load_corpus("embedded", "test", decoded=decoded) for decoded in (True, False))
    longest = max(len(row["audio"]) for row in early) / 16000
    pairs = mix_pairs(late, perturber)
    number = next(row for row, audio in enumerate(early["audio"]) if len(audio) < 16000 * (longest - 0.1))
    np.testing.assert_array_equal(mix_pairs(early, perturber)[number]["audio"], pairs[number]["audio"])
    shortened = mix_pairs(leave_out_long(late, longest - 0.1), perturber)
    assert len(shortened) < len(pairs) and len(shortened[0]["audio"]) == shortened[0]["num_samples"]


def test_all_classes_of_the_noise_are_drawn_unless_some_are_named(noise):
    assert {row.name for row in noise_perturber(noise, [0.0]).perturbations} == {"", "hiss", "hum"}
    perturber = noise_perturber(noise, [0.0, 5.0], classes=["hiss"])
    assert [(row.name, row.minimum, row.maximum) for row in perturber.perturbations] == [
        ("hiss", 0.0, 0.0),
        ("hiss", 5.0, 5.0),
    ]
    assert [len(pool) for pool in perturber.noise_pools.values()] == [2]


# collating


def test_a_batch_holds_both_halves_and_the_index_of_the_noise(collator, pair, make_speech):
    short = {"audio": make_speech(500), "clean_audio": make_speech(500), "text": "a", "speaker": "s1"}
    batch = collator([pair, short | {"noise": ""}, short | {"noise": None}, short, short | {"noise": "hum"}])
    assert batch["waveforms"].shape == batch["clean_waveforms"].shape == (5, 8000)
    assert batch["num_samples"].tolist() == [8000] + [500] * 4
    np.testing.assert_array_equal(batch["waveforms"][0].numpy(), pair["audio"])
    np.testing.assert_array_equal(batch["clean_waveforms"][0].numpy(), pair["clean_audio"])
    assert not batch["clean_waveforms"][1, 500:].any()
    assert batch["noise_labels"].dtype == torch.int64
    assert batch["noise_labels"].tolist() == [1, 2, 2, 2, 0]
    assert {"labels", "seeds"} <= set(batch)


def test_without_classes_there_are_no_noise_labels(tokenizer, pair):
    batch = NoisyPairCollator(tokenizer, tokenizer.bos_token_id)([pair])
    assert "noise_labels" not in batch and "clean_waveforms" in batch


def test_mixed_pairs_are_collated(collator, speech, noise):
    pairs = mix_pairs(speech, noise_perturber(noise, [5.0]), copies=2)
    names = [row["noise"] or "unknown" for row in pairs]
    assert collator(list(pairs))["noise_labels"].tolist() == [CLASSES.index(name) for name in names]


# bad input


def test_an_unseen_noise_class_is_an_error_with_the_known_ones_or_counts_as_unknown(tokenizer, collator, pair):
    with pytest.raises(ValueError, match=r"noise class 'wind' is not one of \['hum', 'hiss', 'unknown'\]"):
        collator([pair | {"noise": "wind"}])
    lenient = NoisyPairCollator(tokenizer, tokenizer.bos_token_id, noise_classes=CLASSES, unseen_as_unknown=True)
    assert lenient([pair | {"noise": "wind"}, pair])["noise_labels"].tolist() == [2, 1]
    with pytest.raises(ValueError, match=r"must be 'unknown', got \['unknown', 'hum'\]"):
        NoisyPairCollator(tokenizer, tokenizer.bos_token_id, noise_classes=["unknown", "hum"])


def test_halves_of_unequal_length_are_named(collator, pair):
    with pytest.raises(ValueError, match=r"text 'hello' of speaker 's7' has 8000 noisy and 7999 clean samples"):
        collator([pair | {"clean_audio": pair["clean_audio"][:-1]}])


def test_a_swapped_pair_is_named(collator, pair):
    with pytest.raises(ValueError, match="text 'hello' of speaker 's7' seems to be swapped"):
        collator([pair | {"audio": pair["clean_audio"], "clean_audio": pair["audio"]}])


@pytest.mark.parametrize(("noisy_gain", "clean_gain"), [(0.1, 1), (10, 1), (1, 0.1), (1, 10), (-0.5, 1)])
def test_the_level_of_either_half_does_not_matter_to_their_order(collator, pair, noisy_gain, clean_gain):
    noisy, clean = np.float32(noisy_gain) * pair["audio"], np.float32(clean_gain) * pair["clean_audio"]
    collator([pair | {"audio": noisy, "clean_audio": clean}])
    with pytest.raises(ValueError, match="turn check_order off"):
        collator([pair | {"audio": clean, "clean_audio": noisy}])


def test_the_check_of_the_order_can_be_turned_off_but_not_that_of_the_lengths(tokenizer, pair):
    collator = NoisyPairCollator(tokenizer, tokenizer.bos_token_id, check_order=False)
    swapped = pair | {"audio": pair["clean_audio"], "clean_audio": pair["audio"]}
    np.testing.assert_array_equal(collator([swapped])["clean_waveforms"][0].numpy(), pair["audio"])
    with pytest.raises(ValueError, match="8000 noisy and 7999 clean samples"):
        collator([swapped | {"clean_audio": pair["audio"][:-1]}])


def test_clean_speech_silence_and_the_shortest_audio_are_not_taken_for_swapped(make_speech):
    for audio in (make_speech(8000), np.zeros(8000, "f4"), np.ones(1, "f4"), make_speech(401)):
        assert not is_swapped(audio, audio) and not is_swapped(audio, 0 * audio)


@needs_shared_data
def test_every_real_pair_is_told_from_its_swap():
    for split in ("validation", "test"):
        for row in load_corpus(str(SHARED_DATA / "voicebank_demand_pairs"), split):
            for gain in np.array([1, 0.3, 3], "f4"):
                assert not is_swapped(gain * row["audio"], row["clean_audio"])
                assert is_swapped(gain * row["clean_audio"], row["audio"])


@needs_shared_data
def test_nearly_every_pair_mixed_with_real_noise_is_told_from_its_swap():
    noise = load_noise(str(SHARED_DATA / "esc50_noise"), "test").shuffle(seed=0).select(range(80))
    speech = load_corpus(f"digit_strings:{SHARED_DATA / 'spoken_digits'}:50", "test", decoded=True)
    pairs = list(mix_pairs(speech, noise_perturber(noise, [2.5, 7.5, 12.5, 17.5])))
    assert not any(is_swapped(gain * row["audio"], row["clean_audio"]) for row in pairs for gain in (1, 0.5))
    assert np.mean([is_swapped(row["clean_audio"], row["audio"]) for row in pairs]) >= 0.9


def test_unknown_noise_classes_and_no_snr_are_errors(noise):
    with pytest.raises(ValueError, match=r"among \['', 'hiss', 'hum'\] .* \(\['wind'\] are not there\)"):
        noise_perturber(noise, [0.0], classes=["hum", "wind"])
    for snrs_db, classes in (([], None), ([0.0], [])):
        with pytest.raises(ValueError, match="at least one SNR, got classes"):
            noise_perturber(noise, snrs_db, classes)


def test_what_cannot_be_mixed_is_refused(speech, noise):
    perturber = noise_perturber(noise, [0.0])
    with pytest.raises(ValueError, match="got IterableDataset: load it with streaming=False"):
        mix_pairs(speech.with_format(None).to_iterable_dataset(), perturber)
    with pytest.raises(ValueError, match="noisy already"):
        mix_pairs(mix_pairs(speech, perturber), perturber)
    with pytest.raises(ValueError, match="copies must be at least 1, got 0"):
        mix_pairs(speech, perturber, copies=0)
    with pytest.raises(ValueError, match=r"leave out the perturbations \['bit_crush'\]"):
        mix_pairs(speech, Perturber(TRAINING_PERTURBATIONS, [torch.ones(3)]))
