"""Questions to the collator and the character tokenizer: labels, seeds, refusal of transcripts it cannot write."""

import numpy as np
import pytest
import torch

from clearspeech.processing.collators import SpeechTextCollator


@pytest.fixture
def collator(tokenizer) -> SpeechTextCollator:
    return SpeechTextCollator(tokenizer, decoder_start_token_id=tokenizer.bos_token_id)


def test_waveforms_are_padded_with_zeros_and_labels_with_minus_100(collator, make_speech):
    rows = [{"audio": make_speech(500), "text": "ab"}, {"audio": make_speech(300, seed=1), "text": "it's"}]
    batch = collator(rows)
    assert batch["waveforms"].shape == (2, 500)
    assert batch["waveforms"].dtype == torch.float32
    assert batch["waveforms"][1, 300:].abs().max() == 0.0
    assert batch["num_samples"].tolist() == [500, 300]
    assert batch["labels"].shape == (2, 5)
    assert batch["labels"][0].tolist() == [5, 6, 0, -100, -100]  # a, b, end of text


def test_labels_start_after_the_start_token_and_read_back_as_the_normalized_text(collator, tokenizer):
    labels = collator.encode_text("Don't STOP, now!")
    assert labels[0] != tokenizer.bos_token_id
    assert labels[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(labels, skip_special_tokens=True) == "don't stop now"


@pytest.mark.parametrize("text", ["", "  ", "?!", None])
def test_an_empty_transcript_is_refused(collator, make_speech, text):
    with pytest.raises(ValueError, match="transcript"):
        collator([{"audio": make_speech(500), "text": text}])


def test_characters_outside_the_vocabulary_are_named(collator):
    with pytest.raises(ValueError, match=r"'7 cafés' has characters outside .*: \['7', 'é'\]"):
        collator.encode_text("7 cafés")


def test_an_utterances_seed_does_not_depend_on_its_batch(collator, make_speech):
    speech = {"audio": make_speech(500), "text": "a"}
    other = {"audio": make_speech(900, seed=1), "text": "b"}
    seeds = collator([other, speech])["seeds"]
    assert collator([speech])["seeds"][0] == seeds[1] != seeds[0]
    assert collator([{**speech, "text": "another text"}])["seeds"][0] == seeds[1]


def test_double_precision_audio_becomes_float32(collator):
    batch = collator([{"audio": np.zeros(160), "text": "a"}])
    assert batch["waveforms"].dtype == torch.float32
