"""What a decoder is given: ids of which books, for which tokens, to how many samples."""

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from .padding_masks import check_padding

PADDING_CODE = -1  # what `encode` writes behind the end of a shorter utterance; no code has this id
BOOK_NAMES = ("all", "semantic", "acoustic")
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def whole_number(value: Any, name: str) -> int:
    """An integer of any library as Python's. Raises ValueError for anything else, True and False included."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number; got {value!r}.") from None


def check_codes(audio_codes: Tensor, attention_mask: Tensor | None, book_sizes: list[int]) -> tuple[Tensor, Tensor]:
    """
    Ids `(batch, books, tokens)`, of books of these sizes or the first few of them, as int64, and which tokens are real
    `(batch, tokens)`.

    Raises:
        ValueError: other shapes or types, no token, -1 or padding before an utterance's end, ids out of range.
    """
    if audio_codes.dim() != 3 or audio_codes.dtype not in INTEGERS or audio_codes.shape[2] < 1:
        raise ValueError(
            f"audio_codes must be integers (batch, books, tokens); got {audio_codes.dtype} of shape "
            f"{tuple(audio_codes.shape)}."
        )
    if not 1 <= audio_codes.shape[1] <= len(book_sizes):
        raise ValueError(f"this codec has {len(book_sizes)} books; got audio_codes of {audio_codes.shape[1]}.")
    audio_codes = audio_codes.long()
    if attention_mask is None:
        attention_mask = (audio_codes != PADDING_CODE).any(dim=1)
    elif attention_mask.shape != (len(audio_codes), audio_codes.shape[2]):
        raise ValueError(
            f"attention_mask must be (batch, tokens) = {(len(audio_codes), audio_codes.shape[2])}; got "
            f"{tuple(attention_mask.shape)}."
        )
    mask = check_padding(attention_mask, "tokens")
    sizes = torch.tensor(book_sizes[: audio_codes.shape[1]], device=audio_codes.device)[:, None]
    wrong = ((audio_codes < 0) | (audio_codes >= sizes)) & mask[:, None]
    if bool(wrong.any()):
        _, book, _ = wrong.nonzero()[0].tolist()
        values = audio_codes[:, book][wrong[:, book]]
        raise ValueError(
            f"codes of book {book} must lie in [0, {book_sizes[book]}); got values from {int(values.min())} to "
            f"{int(values.max())}."
        )
    return audio_codes, mask


def select_books(books: str | int | Sequence[int] | None, num_given: int, config: PreTrainedConfig) -> list[int]:
    """
    Numbers of the books that are asked for, of a codec whose first `num_given` books there are.

    Raises:
        ValueError: another name, books that are not there, none, or one twice.
    """
    num_semantic = 1 if config.num_semantic_codes else 0
    if books is None:
        return list(range(num_given))
    if isinstance(books, str):
        if books not in BOOK_NAMES:
            raise ValueError(f"books must be {', '.join(BOOK_NAMES)}, a number or a list; got {books!r}.")
        ranges = {"all": range(num_given), "semantic": range(num_semantic), "acoustic": range(num_semantic, num_given)}
        selected = list(ranges[books])
        if not selected:
            raise ValueError(f"there is no {books} book among the {num_given} that were given.")
        return selected
    if isinstance(books, Iterable):
        selected = [whole_number(book, "the number of a book") for book in books]
    else:
        selected = list(range(whole_number(books, "books")))
    if not selected or len(set(selected)) < len(selected) or not all(0 <= book < num_given for book in selected):
        raise ValueError(
            f"books must be some of the {num_given} that were given, numbered from 0, each once, or how many of the "
            f"first; got {books}. This codec has {config.num_books}."
        )
    return selected


def check_num_samples(num_samples: int | Sequence[int] | Tensor | None, mask: Tensor, per_token: int) -> Tensor:
    """
    Samples of each utterance `(batch,)`: those asked for, or all of its tokens' under the mask `(batch, tokens)`.

    Raises:
        ValueError: another number of lengths, no whole numbers, or lengths that the tokens do not have.
    """
    available = mask.sum(dim=1) * per_token
    if num_samples is None:
        return available
    wanted = torch.as_tensor(num_samples, device=mask.device)
    if wanted.dim() > 1 or (wanted.dim() == 1 and len(wanted) != len(mask)):
        raise ValueError(f"num_samples must be one number or {len(mask)}; got shape {tuple(wanted.shape)}.")
    if wanted.dtype not in INTEGERS:
        raise ValueError(f"num_samples must be whole numbers; got {wanted.tolist()}.")
    wanted = wanted.expand(len(mask))
    if bool(((wanted < 1) | (wanted > available)).any()):
        raise ValueError(
            f"num_samples must be 1 to the samples of the tokens, {available.tolist()}; got {wanted.tolist()}."
        )
    return wanted
