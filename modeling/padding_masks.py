"""Masks of utterances that are padded behind their ends."""

from torch import Tensor


def check_padding(attention_mask: Tensor, unit: str) -> Tensor:
    """
    A mask `(batch, places)`, 1 on what is real, as a boolean one. unit: what errors call a place.

    Raises:
        ValueError: an utterance of nothing, or padding anywhere but behind its end.
    """
    mask = attention_mask.bool()
    empty = (~mask.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"the utterances {empty} of this batch have no {unit}: leave them out.")
    broken = (mask[:, 1:] & ~mask[:, :-1]).any(dim=1).nonzero().flatten().tolist()
    if broken:
        raise ValueError(
            f"the utterances {broken} of this batch have padding before or within their {unit}: pad them behind the "
            "end alone."
        )
    return mask
