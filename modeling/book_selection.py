"""What a decoder is given: ids of which books, for which tokens, to how many samples."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig

PADDING_CODE = -1  # what `encode` writes behind the end of a shorter utterance; no code has this id
BOOK_NAMES = ("all", "semantic", "acoustic")


def check_codes(audio_codes: Tensor, attention_mask: Tensor | None, book_sizes: list[int]) -> Tensor:
    """
    The mask `(batch, tokens)` of ids `(batch, books, tokens)`, of books of these sizes or the first few of them.

    Raises:
        ValueError: other shapes or types, no token, ids out of range.
    """
    if audio_codes.dim() != 3 or audio_codes.is_floating_point() or audio_codes.shape[2] < 1:
        raise ValueError(
            f"audio_codes must be integers (batch, books, tokens); got {audio_codes.dtype} of shape "
            f"{tuple(audio_codes.shape)}."
        )
    if not 1 <= audio_codes.shape[1] <= len(book_sizes):
        raise ValueError(f"this codec has {len(book_sizes)} books; got audio_codes of {audio_codes.shape[1]}.")
    if attention_mask is None:
        attention_mask = (audio_codes != PADDING_CODE).any(dim=1)
    elif attention_mask.shape != (len(audio_codes), audio_codes.shape[2]):
        raise ValueError(
            f"attention_mask must be (batch, tokens) = {(len(audio_codes), audio_codes.shape[2])}; got "
            f"{tuple(attention_mask.shape)}."
        )
    mask = attention_mask.bool()
    empty = (~mask.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"the utterances {empty} of this batch have no tokens: leave them out.")
    sizes = torch.tensor(book_sizes[: audio_codes.shape[1]], device=audio_codes.device)[:, None]
    wrong = ((audio_codes < 0) | (audio_codes >= sizes)) & mask[:, None]
    if bool(wrong.any()):
        _, book, _ = wrong.nonzero()[0].tolist()
        values = audio_codes[:, book][wrong[:, book]]
        raise ValueError(
            f"codes of book {book} must lie in [0, {book_sizes[book]}); got values from {int(values.min())} to "
            f"{int(values.max())}."
        )
    return mask


def select_books(books: str | int | Sequence[int] | None, num_given: int, config: PreTrainedConfig) -> list[int]:
    """
    Numbers of the books that are asked for, of a codec whose first `num_given` books there are.

    Raises:
        ValueError: another name, books that are not there, none, or one twice.
    """
    num_semantic = 1 if config.num_semantic_codes else 0
    if books is None or books == "all":
        return list(range(num_given))
    if isinstance(books, str):
        if books not in BOOK_NAMES:
            raise ValueError(f"books must be {', '.join(BOOK_NAMES)}, a number or a list; got {books!r}.")
        selected = list(range(num_semantic)) if books == "semantic" else list(range(num_semantic, num_given))
        if not selected:
            raise ValueError(f"there is no {books} book among the {num_given} that were given.")
        return selected
    selected = list(range(books)) if isinstance(books, int) else list(books)
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
        ValueError: another number of lengths, or lengths that the tokens do not have.
    """
    available = mask.sum(dim=1) * per_token
    if num_samples is None:
        return available
    wanted = torch.as_tensor(num_samples, device=mask.device)
    if wanted.dim() > 1 or (wanted.dim() == 1 and len(wanted) != len(mask)):
        raise ValueError(f"num_samples must be one number or {len(mask)}; got shape {tuple(wanted.shape)}.")
    wanted = wanted.expand(len(mask))
    if bool(((wanted < 1) | (wanted > available)).any()):
        raise ValueError(
            f"num_samples must be 1 to the samples of the tokens, {available.tolist()}; got {wanted.tolist()}."
        )
    return wanted
