"""Rows of a corpus to batches of segments, for a codec that reads features and writes waveforms."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import FeatureExtractionMixin

from .feature_extraction_best_rq import FRAMES_PER_TOKEN
from .loudness import bring_to_level
from .perturbation import utterance_seed
from .waveform_checks import check_waveform_for


@dataclass
class SegmentCollator:
    """
    Rows with `audio` (float32 mono) to random segments and their features (HASRD, section 3: "extracting random
    5-second segments [...] from each utterance, zero-padding shorter ones for uniform batch sizes").

    Each utterance is brought to one level first: DAC's data are, whose "framework" the paper adopts, though by their
    gated loudness (see `bring_to_level`). Features normalized over a sentence do not say how loud it was, so no book
    could hold it, while losses and distances would ask for it.

    Where a segment begins depends on the utterance's samples, `seed` and the epoch alone: a resumed epoch, and any
    number of processes or workers, repeats it. It begins with a token. Its features are cut from those of the whole
    utterance, normalized as they will be in use, however short the segment. Zeros behind the real samples are masked.

    Args:
        feature_extractor: of the codec's encoder: a `BestRQFeatureExtractor`, or one of Transformers' for samples.
        samples_per_token, inputs_per_token: of the codec's configuration.
        segment_samples: length of all segments; None keeps whole utterances, zero-padded to the longest of the batch.
        source_samples: how much of the utterance the encoder hears, the segment in the middle; None: as much as is
            decoded. A short segment by itself has less context than the codec will have in use.
        seed: of the run.

    Returns a batch of `waveforms` `(batch, samples)`, `num_samples` `(batch,)` without the padding, `input_features`
    `(batch, mel frames, mels)` or `input_values` `(batch, samples)`, their `attention_mask`, `first_tokens`
    `(batch,)`, where in them the segments begin, and `seeds` `(batch,)`, which depend on an utterance's samples only.

    Raises:
        ValueError: audio that the feature extractor refuses, a source shorter than the segment.
    """

    feature_extractor: FeatureExtractionMixin
    samples_per_token: int = 512
    inputs_per_token: int = FRAMES_PER_TOKEN
    segment_samples: int | None = 80000  # 5 s
    source_samples: int | None = None
    seed: int = 0
    epoch: int = 0

    def __post_init__(self):
        if self.source_samples is not None and self.source_samples < (self.segment_samples or 0):
            raise ValueError(
                f"source_samples must be at least segment_samples; got {self.source_samples} and "
                f"{self.segment_samples}."
            )

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        waveforms = [  # copy: memory maps are read-only
            check_waveform_for(self.feature_extractor, np.array(row["audio"], dtype=np.float32)) for row in rows
        ]
        segments, inputs, first_tokens = zip(*map(self.cut, waveforms))
        length = max(map(len, segments)) if self.segment_samples is None else self.segment_samples
        lengths = torch.tensor([len(values) for values in inputs])
        return {
            self.feature_extractor.model_input_names[0]: pad_sequence(inputs, batch_first=True),
            "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
            "first_tokens": torch.tensor(first_tokens),
            "waveforms": torch.stack([torch.nn.functional.pad(each, (0, length - len(each))) for each in segments]),
            "num_samples": torch.tensor([len(segment) for segment in segments]),
            "seeds": torch.tensor([utterance_seed(waveform) for waveform in waveforms]),
        }

    def cut(self, waveform: Tensor) -> tuple[Tensor, Tensor, int]:
        """
        This epoch's segment `(samples,)` of one utterance `(samples,)`, all of it where it is shorter; what the
        encoder reads around it: `(mel frames, mels)` or `(samples,)`; and the token of that with which it begins.
        """
        length = len(waveform) if self.segment_samples is None else min(self.segment_samples, len(waveform))
        token = self.draw(waveform, (len(waveform) - length) // self.samples_per_token + 1)
        start = token * self.samples_per_token
        levelled = bring_to_level(waveform)
        features = self.feature_extractor(
            [levelled.numpy()], sampling_rate=self.feature_extractor.sampling_rate, return_tensors="pt"
        )
        first, end = self.source_tokens(token, length, len(waveform))
        source = features[self.feature_extractor.model_input_names[0]][0]
        source = source[first * self.inputs_per_token : end * self.inputs_per_token]
        return levelled[start : start + length], source, token - first

    def source_tokens(self, token: int, segment_samples: int, num_samples: int) -> tuple[int, int]:
        """The first token that the encoder hears for a segment from `token` on, and the one behind the last."""
        in_segment, in_all = (-(-samples // self.samples_per_token) for samples in (segment_samples, num_samples))
        heard = in_segment if self.source_samples is None else -(-self.source_samples // self.samples_per_token)
        first = min(max(token - (heard - in_segment) // 2, 0), max(in_all - heard, 0))
        return first, first + heard

    def draw(self, waveform: Tensor, num_places: int) -> int:
        """One of so many places, alike in probability."""
        seed = utterance_seed(waveform, salt=(self.epoch << 32) + self.seed % 2**32)
        return int(torch.randint(num_places, (), generator=torch.Generator().manual_seed(seed)))

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch, and before its workers get their copies."""
        self.epoch = epoch

    def of_whole_utterances(self) -> "SegmentCollator":
        """The same for whole utterances, which validation listens to."""
        return replace(self, segment_samples=None, source_samples=None)
