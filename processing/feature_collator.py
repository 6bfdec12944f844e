"""Rows of a corpus to batches of features, for encoders that learn without transcripts."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import FeatureExtractionMixin

from .perturbation import utterance_seed
from .waveform_checks import check_waveform_for


@dataclass
class FeatureCollator:
    """
    Rows with `audio` (float32 mono, 16 kHz) to what an encoder reads.

    Args:
        feature_extractor: of the encoder, the suite's or Transformers'.

    Returns a batch of `input_features` or `input_values`, as the feature extractor names and shapes them,
    `attention_mask` `(batch, frames or samples)`, and `seeds` `(batch,)`, which depend on an utterance's samples only.

    Raises:
        ValueError: audio that the feature extractor refuses.
    """

    feature_extractor: FeatureExtractionMixin

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
        return {**features, "seeds": torch.tensor([utterance_seed(waveform) for waveform in waveforms])}
