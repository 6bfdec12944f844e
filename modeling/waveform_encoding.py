"""Encoders of waveforms (wav2vec 2.0, HuBERT, WavLM) such that an utterance's states do not depend on its batch."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def check_waveforms(input_values: Tensor, attention_mask: Tensor | None) -> Tensor:
    """
    The mask `(batch, samples)` of samples `(batch, samples)`; all real when None.

    Raises:
        ValueError: other shapes.
    """
    if input_values.dim() != 2:
        raise ValueError(f"input_values must be (batch, samples); got shape {tuple(input_values.shape)}.")
    if attention_mask is None:
        return torch.ones_like(input_values, dtype=torch.long)
    if attention_mask.shape != input_values.shape:
        raise ValueError(
            f"attention_mask must be (batch, samples) = {tuple(input_values.shape)}; got "
            f"{tuple(attention_mask.shape)}."
        )
    return attention_mask


def waveform_frame_mask(encoder: PreTrainedModel, attention_mask: Tensor) -> Tensor:
    """
    `(batch, frames)`, True on real frames, from a mask of samples `(batch, samples)`.

    Raises:
        ValueError: utterances too short for a single frame.
    """
    num_samples = attention_mask.sum(dim=-1)
    num_frames = encoder._get_feat_extract_output_lengths(num_samples)
    if bool((num_frames < 1).any()):
        raise ValueError(f"{int(num_samples.min())} samples are too short for a single frame of the encoder.")
    longest = int(encoder._get_feat_extract_output_lengths(torch.tensor(attention_mask.shape[1])))
    return torch.arange(longest, device=attention_mask.device) < num_frames[:, None]


def encode_waveforms(
    encoder: PreTrainedModel,
    input_values: Tensor,
    attention_mask: Tensor,
    run: Callable[[Tensor, Tensor | None, slice], Tensor],
) -> Tensor:
    """
    What `run` gives `(batch, frames, dim)` for samples `(batch, samples)` under their mask.

    run: called with samples, their mask or None where all are real, and which rows of the batch they are. Once for the
        whole batch, or row by row without any padding where the encoder would see the padding all the same and
        lengths differ.
    """
    input_values = input_values.to(encoder.dtype)
    if encoder.config.feat_extract_norm != "group":
        return run(input_values, attention_mask, slice(None))
    # the first convolution is normalized over time, padding included: these encoders want no padding at all
    lengths = attention_mask.sum(dim=-1).tolist()
    if len(set(lengths)) == 1:
        return run(input_values[:, : lengths[0]], None, slice(None))
    rows = [run(input_values[row, None, :length], None, slice(row, row + 1))[0] for row, length in enumerate(lengths)]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)
