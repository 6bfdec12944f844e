"""Questions to the speech pieces: compression, nothing lost, reload, what is refused."""

import copy

import numpy as np
import pytest

from clearspeech.processing.unit_pieces import FILE_NAME, FIRST_HAN, UnitPieces

NUM_UNITS = 2000


def make_words(num_words: int, num_units: int = NUM_UNITS) -> np.ndarray:
    """Words of three units `(words, 3)`."""
    return np.random.default_rng(0).integers(num_units, size=(num_words, 3))


def speak(words: np.ndarray, num_utterances: int, num_words: int) -> list[list[int]]:
    """Utterances of random words, as unit ids."""
    generator = np.random.default_rng(1)
    return [words[generator.integers(len(words), size=num_words)].flatten().tolist() for _ in range(num_utterances)]


def mean_length(pieces: UnitPieces, utterances: list[list[int]]) -> float:
    return sum(len(pieces.encode(units)) for units in utterances) / len(utterances)


@pytest.fixture(scope="module")
def utterances():
    """171 units each."""
    return speak(make_words(500), num_utterances=300, num_words=57)


@pytest.fixture(scope="module")
def pieces(utterances):
    return UnitPieces.train(utterances, vocab_size=2500, num_units=NUM_UNITS)


def test_a_word_becomes_a_piece(pieces, utterances):
    """Three times shorter; the paper's alphabet cuts words at the borders of scripts and shortens next to nothing."""
    reference = UnitPieces.train(utterances, vocab_size=1200, num_units=NUM_UNITS, mode="reference")
    assert mean_length(pieces, utterances) < 60
    assert mean_length(reference, utterances) > 150


def test_units_that_repeat_without_word_borders_are_shortened_too():
    """Frames of a slow process stay with a unit for a while, as real speech does; any unit may follow any other."""
    generator = np.random.default_rng(0)
    utterances = [np.repeat(generator.integers(300, size=50), generator.integers(1, 5, size=50)) for _ in range(300)]
    pieces = UnitPieces.train(utterances, vocab_size=1200, num_units=300)
    num_units = sum(map(len, utterances)) / len(utterances)
    assert mean_length(pieces, utterances) < 0.45 * num_units  # 0.4 is one piece per run


@pytest.mark.parametrize("length", [1, 2, 171, 5000])
def test_decoding_gives_back_what_was_encoded(pieces, length):
    """Also units and neighbours that the training data has never seen."""
    units = np.random.default_rng(length).integers(NUM_UNITS, size=length).tolist()
    assert pieces.decode(pieces.encode(units)) == units
    assert max(pieces.encode(units)) < pieces.vocab_size == 2500


def test_every_unit_is_a_piece_even_if_unheard():
    heard = speak(make_words(100, num_units=50), 100, 20)
    pieces = UnitPieces.train(heard, vocab_size=150, num_units=60)
    assert pieces.num_units == 60
    assert [pieces.decode(pieces.encode([unit])) for unit in range(60)] == [[unit] for unit in range(60)]


def test_nothing_is_no_pieces(pieces):
    assert pieces.encode([]) == []
    assert pieces.decode([]) == []


def test_utterances_of_many_bytes_are_learned_from():
    """A minute has 3000 units, 9000 bytes: twice what SentencePiece skips by default."""
    minutes = speak(make_words(40, num_units=100), num_utterances=5, num_words=1000)
    assert mean_length(UnitPieces.train(minutes, 140, 100), minutes) < 1100


def test_the_same_units_give_the_same_model(pieces, utterances):
    again = UnitPieces.train(utterances, vocab_size=2500, num_units=NUM_UNITS)
    assert again.processor.serialized_model_proto() == pieces.processor.serialized_model_proto()


def test_saved_and_copied_pieces_are_the_same(pieces, utterances, tmp_path):
    pieces.save(tmp_path / FILE_NAME)
    for other in (UnitPieces.load(tmp_path / FILE_NAME), copy.deepcopy(pieces)):
        assert (other.mode, other.num_units, other.vocab_size) == ("single_script", NUM_UNITS, 2500)
        assert other.encode(utterances[0]) == pieces.encode(utterances[0])


def test_reference_mode_is_the_papers(utterances, tmp_path):
    """`chr(id + 256)`, three ids of SentencePiece's own, a mark before the utterance."""
    words = make_words(100, num_units=200)
    spoken = speak(words, 100, 20)
    pieces = UnitPieces.train(spoken, vocab_size=300, num_units=200, mode="reference")
    pieces.save(tmp_path / FILE_NAME)
    pieces = UnitPieces.load(tmp_path / FILE_NAME)
    assert (pieces.mode, pieces.vocab_size) == ("reference", 300)
    assert pieces.decode(pieces.encode(spoken[0])) == spoken[0]
    text = "".join(chr(unit + 256) for unit in spoken[0])
    assert pieces.encode(spoken[0]) == pieces.processor.encode(text)
    with pytest.raises(ValueError, match="stand for no unit"):
        pieces.decode([1])


def test_reference_mode_reads_rare_units_that_it_has_lost():
    """SentencePiece leaves out the rarest characters by default, of which the last may be one."""
    spoken = [*speak(make_words(100, num_units=199), 100, 60), [199, 5]]
    pieces = UnitPieces.train(spoken, vocab_size=300, num_units=200, mode="reference")
    assert pieces.num_units < 200
    assert 0 in pieces.encode([199, 5])  # the piece of all that is unknown


@pytest.mark.parametrize("unit", [-1, NUM_UNITS])
def test_units_of_another_codebook_and_padding_are_refused(pieces, unit):
    with pytest.raises(ValueError, match=rf"must lie in 0..1999; got \[{unit}\]"):
        pieces.encode([0, unit])
    with pytest.raises(ValueError, match="must lie in 0..1999"):
        UnitPieces.train([[0, 1], [unit]], vocab_size=2500, num_units=NUM_UNITS)


@pytest.mark.parametrize("piece", [-1, 2500])
def test_pieces_outside_the_vocabulary_are_refused(pieces, piece):
    with pytest.raises(ValueError, match=r"must lie in 0\.\.2499"):
        pieces.decode([piece])


def test_vocabularies_that_cannot_be_are_refused(utterances):
    with pytest.raises(ValueError, match="1999 pieces cannot hold 2000 units"):
        UnitPieces.train(utterances, vocab_size=1999, num_units=NUM_UNITS)
    with pytest.raises(ValueError, match="cannot learn 90000 pieces .* Please set it to a value <= "):
        UnitPieces.train(utterances, vocab_size=90000, num_units=NUM_UNITS)
    with pytest.raises(ValueError, match="1 to 20902 units"):
        UnitPieces.train(utterances, vocab_size=90000, num_units=2**15)
    with pytest.raises(ValueError, match="mode must be"):
        UnitPieces.train(utterances, vocab_size=2500, num_units=NUM_UNITS, mode="greek")


def test_all_units_are_of_one_script(pieces):
    assert all(FIRST_HAN <= ord(character) < 0xA000 for character in pieces.alphabet)
    assert len(set(pieces.alphabet)) == NUM_UNITS


def test_files_that_hold_no_units_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        UnitPieces.load(tmp_path / FILE_NAME)
    (tmp_path / FILE_NAME).write_bytes(b"no model")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        UnitPieces.load(tmp_path / FILE_NAME)
