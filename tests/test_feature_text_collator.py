"""Questions to the collator of features and labels: shapes, any extractor's names, seeds, refusal of bad rows."""

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor

from clearspeech.processing.feature_extraction_factored_asr import FactoredASRFeatureExtractor
from clearspeech.processing.feature_extraction_stable_token import StableTokenFeatureExtractor
from clearspeech.processing.feature_text_collator import FeatureTextCollator
from clearspeech.processing.perturbation import utterance_seed
from clearspeech.processing.subword_tokenizer import train_subword_tokenizer


@pytest.fixture(scope="module")
def subwords():
    return train_subword_tokenizer(["one two three", "two two", "it's nine"], vocab_size=20)


@pytest.fixture
def collator(subwords) -> FeatureTextCollator:
    return FeatureTextCollator(FactoredASRFeatureExtractor(), subwords)


@pytest.fixture
def rows(make_speech) -> list[dict]:
    return [
        {"audio": make_speech(8000), "text": "One, two!"},
        {"audio": make_speech(4000, seed=1), "text": "it's nine two two"},
    ]


def test_rows_become_features_a_mask_and_labels(collator, rows, subwords):
    batch = collator(rows)
    assert set(batch) == {"input_features", "attention_mask", "labels", "num_samples", "seeds"}
    assert batch["input_features"].shape == (2, 16, 192)
    assert batch["attention_mask"].sum(dim=1).tolist() == [16, 7]
    assert batch["num_samples"].tolist() == [8000, 4000]
    labels = [row[row != -100] for row in batch["labels"]]
    assert [subwords.decode(row) for row in labels] == ["one two", "it's nine two two"]
    assert batch["labels"].shape[1] == len(labels[1]) > len(labels[0])
    assert subwords.pad_token_id not in torch.cat(labels)


def test_a_row_is_the_same_in_any_batch(collator, rows):
    together, alone = collator(rows[::-1]), collator(rows[:1])
    assert torch.equal(together["input_features"][1], alone["input_features"][0])
    assert together["seeds"][1] == alone["seeds"][0] == utterance_seed(rows[0]["audio"])
    assert collator([{**rows[0], "text": "two"}])["seeds"][0] == alone["seeds"][0]


@pytest.mark.parametrize(
    ("extractor", "name", "shape", "places"),
    [
        (StableTokenFeatureExtractor(feature_size=16), "input_features", (2, 16, 52), [50, 25]),
        (Wav2Vec2FeatureExtractor(return_attention_mask=False), "input_values", (2, 8000), [8000, 4000]),
    ],
)
def test_features_have_the_names_and_shapes_of_their_extractor(extractor, name, shape, places, rows, subwords):
    batch = FeatureTextCollator(extractor, subwords)(rows)
    assert batch[name].shape == shape
    assert batch["attention_mask"].sum(dim=1).tolist() == places


def test_start_and_end_tokens_of_other_tokenizers_are_left_out(tokenizer, rows):
    labels = FeatureTextCollator(FactoredASRFeatureExtractor(), tokenizer)(rows)["labels"]
    assert tokenizer.decode(labels[0][labels[0] != -100]) == "one two"


def test_memory_maps_and_lists_of_doubles_are_read(collator, rows):
    expected = collator(rows[:1])
    frozen = rows[0]["audio"].copy()
    frozen.flags.writeable = False
    for audio in (frozen, rows[0]["audio"].tolist()):
        assert torch.equal(collator([{"audio": audio, "text": "one"}])["input_features"], expected["input_features"])


def test_transcripts_longer_than_their_frames_can_bear_are_named(subwords, make_speech):
    extractor = FactoredASRFeatureExtractor()
    short = {"audio": make_speech(1200), "text": "one two three"}  # two frames
    long = {"audio": make_speech(8000), "text": "two"}
    num_labels = len(subwords("one two three").input_ids)
    assert num_labels == 9
    assert FeatureTextCollator(extractor, subwords, max_labels_per_frame=5)([short])["labels"].shape == (1, 9)
    with pytest.raises(ValueError, match="'one two three' has 9 labels, more than 4 for each of its 2 frames"):
        FeatureTextCollator(extractor, subwords, max_labels_per_frame=4)([long, short])
    halved = FeatureTextCollator(extractor, subwords, 5, count_frames=lambda mask: mask.sum(dim=1) // 2)
    with pytest.raises(ValueError, match="more than 5 for each of its 1 frames"):
        halved([long, short])


@pytest.mark.parametrize("text", ["", "?!", None])
def test_an_empty_transcript_is_refused(collator, make_speech, text):
    with pytest.raises(ValueError, match="nothing is left of the transcript"):
        collator([{"audio": make_speech(8000), "text": text}])


def test_characters_outside_the_vocabulary_are_named(collator, make_speech):
    with pytest.raises(ValueError, match=r"'two 2 äpfel' has characters .*: \['2', 'f', 'l', 'p', 'ä'\]"):
        collator([{"audio": make_speech(8000), "text": "two 2 Äpfel"}])


def test_bad_audio_is_refused_whatever_the_extractor(collator, subwords, make_speech):
    with pytest.raises(ValueError, match="stacked frame of 720 samples, got 500"):
        collator([{"audio": make_speech(500), "text": "one"}])
    stock = FeatureTextCollator(Wav2Vec2FeatureExtractor(), subwords)
    with pytest.raises(ValueError, match="window of 400 samples, got 399"):
        stock([{"audio": make_speech(399), "text": "one"}])
    with pytest.raises(ValueError, match="NaN or infinite"):
        stock([{"audio": np.full(800, np.nan), "text": "one"}])
