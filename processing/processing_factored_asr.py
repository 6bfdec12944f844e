"""Audio and text for FactoredASR."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from .text_encoding import encode_known, normalize_transcript
from .waveform_checks import check_sampling_rate, check_waveform_for, list_waveforms


class FactoredASRProcessor(ProcessorMixin):
    """
    The feature extractor of a frame encoder for audio, and subwords for text.

    Args:
        feature_extractor: `FactoredASRFeatureExtractor`, or that of the encoder that was taken over:
            `StableTokenFeatureExtractor` for Whisper's, `ParakeetFeatureExtractor`, `Wav2Vec2FeatureExtractor`.
        tokenizer: with a padding token, see `train_subword_tokenizer`.
    """

    def __init__(self, feature_extractor, tokenizer):
        super().__init__(feature_extractor, tokenizer)

    def __call__(
        self,
        audio: np.ndarray | Tensor | list | None = None,
        text: str | list[str] | None = None,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        **audio_kwargs: Any,
    ) -> BatchFeature:
        """
        Features of the audio, labels of the text, or both.

        audio: mono floating-point samples `(samples,)`, or a list of such, at `sampling_rate` Hz.
        text: one transcript per waveform, normalized here.
        audio_kwargs: passed on to the feature extractor.

        Returns where audio is given `input_features` or `input_values`, as the feature extractor names and shapes
        them, padded to the longest, and `attention_mask` `(batch, frames or samples)`; where text is given `labels`
        `(batch, tokens)`, padded with -100.

        Raises:
            ValueError: neither audio nor text, their numbers differ, a missing or wrong sampling rate, audio that the
                feature extractor refuses, a transcript that is empty or holds characters outside the vocabulary.
        """
        if audio is None and text is None:
            raise ValueError("Got neither audio nor text. Pass `audio=` with `sampling_rate=`, `text=`, or both.")
        features = BatchFeature()
        if audio is not None:
            features = self.extract(audio, sampling_rate, **audio_kwargs)
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            if audio is not None and len(texts) != len(features["attention_mask"]):
                num_waveforms = len(features["attention_mask"])
                raise ValueError(
                    f"Got {num_waveforms} waveforms and {len(texts)} transcripts. Pass one text per waveform."
                )
            features["labels"] = self.encode_texts(texts)
        return features.convert_to_tensors(return_tensors)

    def extract(
        self, audio: np.ndarray | Tensor | list, sampling_rate: int | None, **audio_kwargs: Any
    ) -> BatchFeature:
        """Checked and padded features of the audio, as NumPy arrays; arguments as for `__call__`."""
        check_sampling_rate(sampling_rate, self.feature_extractor.sampling_rate)
        waveforms = [check_waveform_for(self.feature_extractor, each).numpy() for each in list_waveforms(audio)]
        padded = {"padding": "longest", "return_attention_mask": True, "return_tensors": "np"}
        return self.feature_extractor(waveforms, sampling_rate=sampling_rate, **padded | audio_kwargs)

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        """Labels `(batch, tokens)` of transcripts, padded with -100."""
        rows = [encode_known(self.tokenizer, normalize_transcript(text), add_special_tokens=False) for text in texts]
        labels = np.full((len(rows), max(map(len, rows), default=0)), -100)
        for row, ids in enumerate(rows):
            labels[row, : len(ids)] = ids
        return labels

    def decode(self, token_ids: Sequence[int] | Tensor, skip_special_tokens: bool = True) -> str:
        """Text of generated ids `(tokens,)`; padding is dropped."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def batch_decode(self, sequences: Sequence | Tensor, skip_special_tokens: bool = True) -> list[str]:
        """`decode` of each row of `(batch, tokens)`."""
        return [self.decode(row, skip_special_tokens) for row in sequences]


__all__ = ["FactoredASRProcessor"]
