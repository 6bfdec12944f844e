"""Rows of a corpus to batches of features and labels, for a recognizer on top of any frame encoder."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import FeatureExtractionMixin, PreTrainedTokenizerBase

from .perturbation import utterance_seed
from .text_encoding import encode_known, normalize_transcript
from .waveform_checks import check_waveform_for


@dataclass
class FeatureTextCollator:
    """
    Rows with `audio` (float32 mono, 16 kHz) and `text` to what a frame encoder reads, and labels.

    Args:
        feature_extractor: of the encoder, the suite's or Transformers'.
        tokenizer: of the labels; its start and end tokens, if it has any, are left out.
        max_labels_per_frame: how many labels a transducer writes at one frame of its encoder at most.
        count_frames: from the attention mask `(batch, frames or samples)` to the encoder's frames `(batch,)`, for an
            encoder that shortens its input; without it, each place of the mask is one.

    Returns a batch of `input_features` or `input_values`, as the feature extractor names and shapes them,
    `attention_mask` `(batch, frames or samples)`, `labels` `(batch, tokens)` with -100 on padding, `num_samples`
    `(batch,)`, and `seeds` `(batch,)`, which depend on an utterance's samples only.

    Raises:
        ValueError: a transcript that is empty after normalization, holds characters the tokenizer does not know, or
            has more labels than its frames can bear; audio that the feature extractor refuses.
    """

    feature_extractor: FeatureExtractionMixin
    tokenizer: PreTrainedTokenizerBase
    max_labels_per_frame: int | None = None
    count_frames: Callable[[Tensor], Tensor] | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        waveforms = [  # copy: memory maps are read-only
            check_waveform_for(self.feature_extractor, np.array(row["audio"], dtype=np.float32)) for row in rows
        ]
        features = self.feature_extractor(
            [waveform.numpy() for waveform in waveforms],
            sampling_rate=self.feature_extractor.sampling_rate,
            padding="longest",
            return_attention_mask=True,
            return_tensors="pt",
        )
        texts = [normalize_transcript(row["text"]) for row in rows]
        labels = [torch.tensor(encode_known(self.tokenizer, text, add_special_tokens=False)) for text in texts]
        self.check_lengths(texts, labels, features["attention_mask"])
        return {
            **features,
            "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100),
            "num_samples": torch.tensor([len(waveform) for waveform in waveforms]),
            "seeds": torch.tensor([utterance_seed(waveform) for waveform in waveforms]),
        }

    def check_lengths(self, texts: list[str], labels: list[Tensor], attention_mask: Tensor) -> None:
        """Raise ValueError for a transcript that a transducer could never write at so few frames."""
        if self.max_labels_per_frame is None:
            return
        count_frames = self.count_frames or (lambda mask: mask.sum(dim=1))
        for text, ids, num_frames in zip(texts, labels, count_frames(attention_mask).tolist(), strict=True):
            if len(ids) > self.max_labels_per_frame * num_frames:
                raise ValueError(
                    f"the transcript {text!r} has {len(ids)} labels, more than {self.max_labels_per_frame} for each "
                    f"of its {num_frames} frames: it does not belong to this audio, or the audio is cut off. Correct "
                    "the row or leave it out."
                )
