"""Log-mel frames as models are given them: what they must be, and the frames of a token as one vector."""

import torch
from torch import Tensor, nn


def check_features(input_features: Tensor, attention_mask: Tensor | None, num_mel_bins: int) -> Tensor:
    """
    The mask `(batch, frames)` of features `(batch, frames, num_mel_bins)`; all real when None.

    Raises:
        ValueError: other shapes.
    """
    if input_features.dim() != 3 or input_features.shape[2] != num_mel_bins or input_features.shape[1] == 0:
        raise ValueError(
            f"input_features must be (batch, frames, {num_mel_bins}); got shape {tuple(input_features.shape)}. Use "
            "the feature extractor saved with this model."
        )
    if attention_mask is None:
        return torch.ones(input_features.shape[:2], dtype=torch.long, device=input_features.device)
    if attention_mask.shape != input_features.shape[:2]:
        raise ValueError(
            f"attention_mask must be (batch, frames) = {tuple(input_features.shape[:2])}; got "
            f"{tuple(attention_mask.shape)}."
        )
    return attention_mask


def stack_frames(frames: Tensor, attention_mask: Tensor, per_token: int) -> tuple[Tensor, Tensor]:
    """
    The mel frames of each token one after another, `(batch, tokens, per_token x mels)`, zeros on padding, and which
    tokens are real `(batch, tokens)`, of frames `(batch, mel frames, mels)` and their mask `(batch, mel frames)`.
    """
    frames = frames.masked_fill(~attention_mask.bool()[..., None], 0.0)
    frames = nn.functional.pad(frames, (0, 0, 0, -frames.shape[1] % per_token))
    return frames.unflatten(1, (-1, per_token)).flatten(2), attention_mask[:, ::per_token].bool()
