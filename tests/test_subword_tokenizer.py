"""Questions to the learned subwords: round trips, sizes, reload, what is refused."""

import logging

import numpy as np
import pytest
from transformers import AutoTokenizer

from clearspeech.processing.subword_tokenizer import train_subword_tokenizer
from clearspeech.processing.text_encoding import encode_known

DIGITS = "zero one two three four five six seven eight nine".split()
STRINGS = np.random.default_rng(0).choice(DIGITS, (100, 5))
TEXTS = [" ".join(string[: 2 + index % 4]) for index, string in enumerate(STRINGS)] + ["don't stop", "dot", "pots on"]


@pytest.fixture(scope="module")
def subwords():
    return train_subword_tokenizer(TEXTS, vocab_size=32)


@pytest.mark.parametrize("text", ["one two", "nine", "don't", "d on 't", "t o p s", "enin evif"])
def test_decoding_gives_back_what_was_encoded(subwords, text):
    """Also words that the texts do not have, and spaces before apostrophes."""
    ids = encode_known(subwords, text)
    assert subwords.decode(ids) == text
    assert subwords.unk_token_id not in ids and subwords.pad_token_id not in ids


def test_frequent_words_become_one_piece_and_nothing_is_put_around_them(subwords):
    ids = subwords("one two three").input_ids
    assert len(ids) == 3
    assert subwords.convert_ids_to_tokens(subwords("two").input_ids) == ["▁two"]


def test_the_vocabulary_has_the_size_asked_for_with_padding_and_unknown(subwords):
    assert len(subwords) == subwords.vocab_size == 32
    assert (subwords.pad_token_id, subwords.unk_token_id) == (0, 1)
    assert subwords.bos_token_id is None and subwords.eos_token_id is None


def test_every_character_of_the_texts_is_a_piece(subwords):
    assert set("".join(TEXTS).replace(" ", "▁")) <= subwords.get_vocab().keys()


def test_rare_characters_and_other_scripts_are_kept():
    subwords = train_subword_tokenizer([*TEXTS * 20, "Café 日本 x"], vocab_size=60)
    assert subwords.decode(encode_known(subwords, "é日 xéz")) == "é日 xéz"


def test_padding_is_dropped_from_decoded_text(subwords):
    ids = subwords("one two").input_ids
    assert subwords.decode([*ids, 0, 0], skip_special_tokens=True) == "one two"


def test_texts_are_normalized_before_they_are_learned_from():
    shouted = [f"{text.upper()} !" for text in TEXTS]
    assert train_subword_tokenizer(shouted, 32).get_vocab() == train_subword_tokenizer(TEXTS, 32).get_vocab()


def test_a_saved_tokenizer_is_the_same(subwords, tmp_path):
    subwords.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == subwords.get_vocab()
    assert (again.pad_token, again.unk_token) == ("<pad>", "<unk>")
    for text in (*TEXTS, "d on 't"):
        assert again(text).input_ids == subwords(text).input_ids
        assert again.decode(again(text).input_ids) == text


def test_characters_outside_the_texts_are_refused_by_name(subwords):
    with pytest.raises(ValueError, match=r"'one 7 é' has characters outside .*: \['7', 'é'\]"):
        encode_known(subwords, "one 7 é")


def test_a_corpus_that_gives_fewer_pieces_is_learned_from_and_said(caplog):
    with caplog.at_level(logging.WARNING):
        subwords = train_subword_tokenizer(["one two", "two one"], vocab_size=640)
    assert len(subwords) < 640
    assert f"{len(subwords)} subwords, 640 were asked for" in caplog.text
    assert subwords.decode(subwords("two two one").input_ids) == "two two one"


def test_one_character_is_enough():
    subwords = train_subword_tokenizer(["a"], vocab_size=4)
    assert subwords.decode(subwords("a aa").input_ids) == "a aa"


def test_vocabularies_below_the_alphabet_and_missing_texts_are_refused():
    with pytest.raises(ValueError, match="vocab_size=7 cannot hold the 6 characters .* at least 8"):
        train_subword_tokenizer(["one two"], vocab_size=7)
    assert len(train_subword_tokenizer(["one two"], vocab_size=8)) == 8
    with pytest.raises(ValueError, match="no texts"):
        train_subword_tokenizer([], vocab_size=40)
    with pytest.raises(ValueError, match="nothing is left of the transcript '<SIL>'"):
        train_subword_tokenizer(["one", "<SIL>"], vocab_size=40)
