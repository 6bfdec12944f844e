"""Collators: rows of a corpus to padded batches."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .perturbation import utterance_seed
from .text_encoding import encode_known, normalize_transcript


@dataclass
class SpeechTextCollator:
    """
    Rows with `audio` (float32 mono, 16 kHz) and `text` to waveforms and labels.

    Features are not extracted here: perturbations act on the waveform (StableToken, section 2.3), so the trainer
    extracts them, on the accelerator.

    Args:
        tokenizer: of the base Whisper; its start token is cut from the labels, the decoder adds it.
        decoder_start_token_id: that token.

    Returns a batch of `waveforms` `(batch, samples)`, `num_samples` `(batch,)`, `labels` `(batch, tokens)` with -100
    on padding, and `seeds` `(batch,)`, which depend on an utterance's samples only.

    Raises:
        ValueError: a transcript that is empty after normalization or holds characters the tokenizer does not know.
    """

    tokenizer: PreTrainedTokenizerBase
    decoder_start_token_id: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        waveforms = [
            torch.from_numpy(np.array(row["audio"], dtype=np.float32)) for row in rows
        ]  # copy: memory maps are read-only
        labels = [torch.tensor(self.encode_text(row["text"])) for row in rows]
        return {
            "waveforms": torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True),
            "num_samples": torch.tensor([len(waveform) for waveform in waveforms]),
            "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100),
            "seeds": torch.tensor([utterance_seed(waveform) for waveform in waveforms]),
        }

    def encode_text(self, text: str) -> list[int]:
        """Label ids of one transcript, end token included."""
        ids = encode_known(self.tokenizer, normalize_transcript(text))
        return ids[1:] if ids[0] == self.decoder_start_token_id else ids
