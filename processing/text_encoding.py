"""Texts to a tokenizer's ids, with an error wherever something would be lost or taken for something else."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from .text_normalization import normalize_text


def normalize_transcript(text: str | None) -> str:
    """`normalize_text` of a row's transcript. Raises ValueError when nothing is left; without one a row holds None."""
    normalized = normalize_text(text) if text else ""
    if not normalized:
        raise ValueError(f"nothing is left of the transcript {text!r} after normalization.")
    return normalized


def encode_known(tokenizer: PreTrainedTokenizerBase, text: str, add_special_tokens: bool = True) -> list[int]:
    """Ids of a text as it is. Raises ValueError for characters that the tokenizer does not know."""
    ids = tokenizer(text, add_special_tokens=add_special_tokens).input_ids
    unknown_id = tokenizer.unk_token_id
    if unknown_id != tokenizer.eos_token_id and unknown_id in ids:  # GPT-2 knows every byte and calls its end unknown
        outside = sorted(
            {each for each in text if unknown_id in tokenizer(each, add_special_tokens=add_special_tokens).input_ids}
        )
        raise ValueError(f"the transcript {text!r} has characters outside the tokenizer's vocabulary: {outside}.")
    return ids


def refuse_special_tokens(tokenizer: PreTrainedTokenizerBase, text: str, others: Sequence[str] = ()) -> None:
    """Raise ValueError for a text that contains a special token of the tokenizer or one of the others."""
    found = [token for token in (*others, *tokenizer.all_special_tokens) if token in text]
    if found:
        raise ValueError(
            f"the text {text!r} contains the special tokens {', '.join(found)}, which would end or steer it. Remove "
            "them from the text."
        )


def check_text_rows(tokenizer: PreTrainedTokenizerBase, text_vocab_size: int) -> None:
    """Raise ValueError for a tokenizer with more ids than a text model has rows, or with nothing to pad with."""
    if len(tokenizer) > text_vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, the text model {text_vocab_size} rows: pass the rows of the "
            "embedding (config.vocab_size) of the text model that the tokenizer belongs to."
        )
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise ValueError(
            f"{type(tokenizer).__name__} has neither a padding token nor an end of text. Set tokenizer.pad_token to "
            "one that never occurs in text."
        )
