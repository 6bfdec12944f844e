"""Rows of a corpus to batches of segments, for a codec that reads features and writes waveforms."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import FeatureExtractionMixin

from .feature_extraction_best_rq import FRAMES_PER_TOKEN, BestRQFeatureExtractor
from .perturbation import utterance_seed
from .waveform_checks import check_waveform_for


@dataclass
class SegmentCollator:
    """
    Rows with `audio` (float32 mono) to random segments and their features (HASRD, section 3: "extracting random
    5-second segments [...] from each utterance, zero-padding shorter ones for uniform batch sizes").

    Where a segment begins depends on the utterance's samples, `seed` and the epoch alone: a resumed epoch, and any
    number of processes or workers, repeats it. Its features are cut from those of the whole utterance, normalized as
    they will be in use, however short the segment; for that it begins with a token. Zeros behind the real samples are
    masked.

    Args:
        feature_extractor: of the codec's encoder: a `BestRQFeatureExtractor`, or one of Transformers' for samples.
        segment_samples: length of all segments; None keeps whole utterances, zero-padded to the longest of the batch.
        seed: of the run.

    Returns a batch of `waveforms` `(batch, samples)`, `num_samples` `(batch,)` without the padding, `input_features`
    `(batch, mel frames, mels)` or `input_values` `(batch, samples)`, and their `attention_mask`.

    Raises:
        ValueError: audio that the feature extractor refuses.
    """

    feature_extractor: FeatureExtractionMixin
    segment_samples: int | None = 80000  # 5 s
    seed: int = 0
    epoch: int = 0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        pairs = [self.cut(np.array(row["audio"], dtype=np.float32)) for row in rows]  # memory maps are read-only
        segments, inputs = [segment for segment, _ in pairs], [values for _, values in pairs]
        length = max(map(len, segments)) if self.segment_samples is None else self.segment_samples
        lengths = torch.tensor([len(values) for values in inputs])
        return {
            self.feature_extractor.model_input_names[0]: pad_sequence(inputs, batch_first=True),
            "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
            "waveforms": torch.stack([torch.nn.functional.pad(each, (0, length - len(each))) for each in segments]),
            "num_samples": torch.tensor([len(segment) for segment in segments]),
        }

    def cut(self, audio: np.ndarray) -> tuple[Tensor, Tensor]:
        """
        This epoch's segment `(samples,)` of one utterance, all of it where it is shorter, and what the encoder reads
        of it: `(mel frames, mels)` or `(samples,)`.
        """
        waveform = check_waveform_for(self.feature_extractor, audio)
        features = self.feature_extractor(
            [waveform.numpy()], sampling_rate=self.feature_extractor.sampling_rate, return_tensors="pt"
        )
        inputs = features[self.feature_extractor.model_input_names[0]][0]
        if self.segment_samples is None or len(waveform) <= self.segment_samples:
            return waveform, inputs
        per_token, per_input = self.grid
        start = per_token * self.draw(waveform, (len(waveform) - self.segment_samples) // per_token + 1)
        num_inputs = -(-self.segment_samples // per_token) * per_token // per_input
        first = start // per_input
        return waveform[start : start + self.segment_samples], inputs[first : first + num_inputs]

    @property
    def grid(self) -> tuple[int, int]:
        """Samples from one place where a segment may begin to the next, and of each of the encoder's inputs."""
        if isinstance(self.feature_extractor, BestRQFeatureExtractor):
            per_token = self.feature_extractor.samples_per_token
            return per_token, per_token // FRAMES_PER_TOKEN
        return 1, 1

    def draw(self, waveform: Tensor, num_places: int) -> int:
        """One of so many places, alike in probability."""
        seed = utterance_seed(waveform, salt=(self.epoch << 32) + self.seed % 2**32)
        return int(torch.randint(num_places, (), generator=torch.Generator().manual_seed(seed)))

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch, and before its workers get their copies."""
        self.epoch = epoch

    def of_whole_utterances(self) -> "SegmentCollator":
        """The same for whole utterances, which validation listens to."""
        return replace(self, segment_samples=None)
