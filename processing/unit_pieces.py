"""Speech pieces: subwords of speech units, by SentencePiece."""

import io
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

FILE_NAME = "unit_pieces.model"
FIRST_HAN = 0x4E00  # CJK Unified Ideographs: the longest run of letters of one script
NUM_HAN = 20902  # those of Unicode 1.1, which every version of SentencePiece knows
FIRST_REFERENCE = 256  # `chr(id + 256)` in the paper's code
WORD_START = "\u2581"  # what SentencePiece puts before a text by default


class UnitPieces:
    """
    SentencePiece's unigram model over speech units ("Then we use Sentencepiece with the unigram language model to
    tokenize the cluster centroids and obtain 6000 subword units", SLD, section 4.1).

    Each unit is one character, an utterance one long word. SentencePiece joins no characters of two scripts by
    default. The paper's code counts from U+0100, where Latin, Greek, Cyrillic and a dozen others follow one another,
    so that its pieces end at their borders. Here all units are Han, nothing is put before an utterance, none is too
    long to learn from, and every unit is a piece of its own: decoding gives back what was encoded. On speech made of
    words of three units a piece is then a word, three times fewer than in `reference` mode.

    The units are spread over all Han characters. SentencePiece 0.2.3 looks for repetitions among the bytes of UTF-8
    and drops those that end inside a character, as nearly all do where neighbouring characters share their first two
    bytes: of 500 units in a row, real speech gets a twentieth of the candidates, and pieces twice as short.

    Args:
        processor: a trained model, see `train` and `load`.

    Raises:
        ValueError: it is not one of speech units.
    """

    def __init__(self, processor: SentencePieceProcessor):
        self.processor = processor
        pieces = [processor.id_to_piece(index) for index in range(processor.vocab_size())]
        characters = [piece for piece in pieces if len(piece) == 1 and piece != WORD_START]
        if not characters or ord(min(characters)) < FIRST_REFERENCE:
            raise ValueError(
                f"this SentencePiece model is not one of speech units; its pieces begin with {pieces[:5]}."
            )
        self.mode = "single_script" if ord(min(characters)) >= FIRST_HAN else "reference"
        # SentencePiece wants a piece for the unknown, which is its first: here nothing is unknown, and it has no id
        self.first_piece = 1 if self.mode == "single_script" else 0
        self.num_units = (
            len(characters) if self.mode == "single_script" else ord(max(characters)) + 1 - FIRST_REFERENCE
        )
        # pieces of the paper's code do not say how many units there are: rare ones have none, and are unknown
        self.alphabet = unit_alphabet(self.num_units if self.mode == "single_script" else NUM_HAN, self.mode)
        self.units = {character: unit for unit, character in enumerate(self.alphabet)}

    @property
    def vocab_size(self) -> int:
        """Number of pieces, s: ids lie in 0 .. s - 1."""
        return self.processor.vocab_size() - self.first_piece

    @classmethod
    def train(
        cls, units: Iterable[Sequence[int]], vocab_size: int, num_units: int, mode: str = "single_script"
    ) -> "UnitPieces":
        """
        Learn pieces from the unit ids of utterances.

        Args:
            vocab_size: number of pieces, "6000 subword units"; `reference` counts three that stand for nothing.
            num_units: size of the codebook; ids lie in 0 .. num_units - 1.
            mode: "single_script", or "reference" for `chr(id + 256)` and SentencePiece's defaults, as in the paper's
                code, which loses rare units and utterances of more than 4192 bytes.

        Raises:
            ValueError: an id outside the codebook, a vocabulary too small to hold all units or larger than what the
                data has, more units than there are characters, and an unknown mode.
        """
        alphabet = unit_alphabet(num_units, mode)
        sentences = (to_text(ids, alphabet) for ids in units)
        options = dict(vocab_size=vocab_size)
        if mode == "single_script":
            if vocab_size < num_units:
                raise ValueError(
                    f"{vocab_size} pieces cannot hold {num_units} units, each of which is one. Raise the vocabulary, "
                    "or use the units as they are."
                )
            sentences = chain(alphabet, sentences)  # each unit once, so that none is unknown
            options = dict(
                vocab_size=vocab_size + 1,
                character_coverage=1.0,
                add_dummy_prefix=False,
                max_sentence_length=2**30,
                bos_id=-1,
                eos_id=-1,
            )
        model = io.BytesIO()
        try:
            SentencePieceTrainer.train(
                sentence_iterator=sentences,
                model_writer=model,
                model_type="unigram",
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                minloglevel=2,  # errors alone
                **options,
            )
        except RuntimeError as error:
            raise ValueError(f"SentencePiece cannot learn {vocab_size} pieces from these units: {error}") from error
        return cls(SentencePieceProcessor(model_proto=model.getvalue()))

    def encode(self, units: Sequence[int]) -> list[int]:
        """
        Piece ids of an utterance's unit ids.

        Raises:
            ValueError: an id outside the codebook (padding included).
        """
        text = to_text(units, self.alphabet)
        return [piece - self.first_piece for piece in self.processor.encode(text)]

    def decode(self, pieces: Sequence[int]) -> list[int]:
        """
        Unit ids of an utterance's piece ids.

        Raises:
            ValueError: an id outside the vocabulary; in `reference` mode one that stands for no unit.
        """
        outside = [piece for piece in pieces if not 0 <= piece < self.vocab_size]
        if outside:
            raise ValueError(f"piece ids must lie in 0..{self.vocab_size - 1}; got {outside[:5]}.")
        ids = [int(piece) + self.first_piece for piece in pieces]
        unknown = [index for index in ids if self.processor.is_unknown(index) or self.processor.is_control(index)]
        if unknown:
            raise ValueError(f"pieces {unknown[:5]} stand for no unit: they are SentencePiece's own.")
        text = "".join(self.processor.id_to_piece(index) for index in ids)
        return [self.units[character] for character in text.replace(WORD_START, "")]

    def save(self, path: str | Path):
        """Write the SentencePiece model; `FILE_NAME` is its name in a processor's folder."""
        Path(path).write_bytes(self.processor.serialized_model_proto())

    @classmethod
    def load(cls, path: str | Path) -> "UnitPieces":
        """
        Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a SentencePiece model of units.
        """
        content = Path(path).read_bytes()
        try:
            processor = SentencePieceProcessor(model_proto=content)
        except RuntimeError as error:
            raise ValueError(f"{path} is not a SentencePiece model: {error}") from error
        return cls(processor)


def unit_alphabet(num_units: int, mode: str) -> str:
    """
    The character of each unit.

    Raises:
        ValueError: an unknown mode, no units, or more than there are characters.
    """
    if mode not in ("single_script", "reference"):
        raise ValueError(f'mode must be "single_script" or "reference"; got {mode!r}.')
    if not 1 <= num_units <= NUM_HAN:
        raise ValueError(f"1 to {NUM_HAN} units can have a character of their own; got {num_units}.")
    if mode == "reference":
        return "".join(chr(FIRST_REFERENCE + unit) for unit in range(num_units))
    step = NUM_HAN // num_units
    return "".join(chr(FIRST_HAN + unit * step) for unit in range(num_units))


def to_text(units: Sequence[int], alphabet: str) -> str:
    """
    Units as characters.

    Raises:
        ValueError: an id outside the codebook.
    """
    outside = [int(unit) for unit in units if not 0 <= unit < len(alphabet)]
    if outside:
        raise ValueError(
            f"unit ids must lie in 0..{len(alphabet) - 1}; got {outside[:5]}: units of another codebook, or padding."
        )
    return "".join(alphabet[unit] for unit in units)
