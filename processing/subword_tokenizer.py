"""A tokenizer of subwords, learned from a corpus' transcripts: the units that a transducer writes."""

import io
import logging
from collections.abc import Iterable

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from .text_encoding import normalize_transcript

logger = logging.getLogger(__name__)

SPECIAL_TOKENS = ("<pad>", "<unk>")
WORD_START = "▁"


def train_subword_tokenizer(texts: Iterable[str], vocab_size: int = 640) -> PreTrainedTokenizerFast:
    """
    Learn unigram pieces with SentencePiece ("a sentence-piece model with a vocab size of 640", section 2.4).

    The paper does not name the model's kind; unigram is SentencePiece's own. It is kept as a fast tokenizer, whose
    `tokenizer.json` needs no SentencePiece to load, and writes no token around a text. Every character of the texts is
    a piece; the unknown token only exists so that collators can refuse others.

    Args:
        texts: transcripts, normalized here (`normalize_text`).
        vocab_size: pieces, padding (id 0) and unknown (id 1) included. A small corpus may give fewer, which is logged.

    Raises:
        ValueError: no texts, one of which nothing is left after normalization, or a vocab_size that cannot hold all
            characters.
    """
    sentences = [normalize_transcript(text) for text in texts]
    if not sentences:
        raise ValueError("Got no texts to learn subwords from: pass the transcripts of the training corpus.")
    least = len(set().union(*sentences) - {" "} | {WORD_START}) + len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise ValueError(
            f"vocab_size={vocab_size} cannot hold the {least - len(SPECIAL_TOKENS)} characters of the texts (the "
            f"beginning of a word is one) and {len(SPECIAL_TOKENS)} special tokens: use at least {least}."
        )
    model = io.BytesIO()
    padding, unknown = SPECIAL_TOKENS
    SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        max_sentence_length=2**30,  # bytes: by default, SentencePiece leaves out those above 4192
        pad_id=0,
        pad_piece=padding,
        unk_id=1,
        unk_piece=unknown,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,  # errors alone
    )
    pieces = SentencePieceProcessor(model_proto=model.getvalue())
    if len(pieces) < vocab_size:
        logger.warning("the texts give %d subwords, %d were asked for", len(pieces), vocab_size)
    return as_fast_tokenizer(pieces)


def as_fast_tokenizer(pieces: SentencePieceProcessor) -> PreTrainedTokenizerFast:
    """The same pieces, ids and segmentations, for text of single spaces."""
    padding, unknown = SPECIAL_TOKENS
    scores = [(pieces.id_to_piece(index), pieces.get_score(index)) for index in range(len(pieces))]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=pieces.unk_id()))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=WORD_START, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement=WORD_START, prepend_scheme="always")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=padding, unk_token=unknown, clean_up_tokenization_spaces=False
    )
