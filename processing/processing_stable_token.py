"""Audio and text for StableToken."""

from typing import Any

import numpy as np
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin


class StableTokenProcessor(ProcessorMixin):
    """
    A `StableTokenFeatureExtractor` for audio and a tokenizer (Whisper's, or any `PreTrainedTokenizerFast`) for text.

    Args:
        feature_extractor: `StableTokenFeatureExtractor`.
        tokenizer: with a padding token.
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
        Features of the audio, token ids of the text, or both.

        audio: mono floating-point samples `(samples,)`, or a list of such, at `sampling_rate` Hz.
        text: one transcript per waveform.
        audio_kwargs: passed on to the feature extractor.

        Returns `input_features` `(batch, mel bins, frames)` and `attention_mask` `(batch, frames)` where audio is
        given, and `labels` `(batch, text tokens)` where text is, padded with -100. They start with the tokenizer's
        start tokens, as `WhisperProcessor`'s do; for training see `SpeechTextCollator`, which cuts them.

        Raises:
            ValueError: neither audio nor text, their numbers differ, or the feature extractor refuses the audio.
        """
        if audio is None and text is None:
            raise ValueError("Got neither audio nor text. Pass `audio=` with `sampling_rate=`, `text=`, or both.")
        features = BatchFeature()
        if audio is not None:
            features = self.feature_extractor(audio, sampling_rate=sampling_rate, return_tensors="np", **audio_kwargs)
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            if audio is not None and len(texts) != len(features["input_features"]):
                num_waveforms = len(features["input_features"])
                raise ValueError(
                    f"Got {num_waveforms} waveforms and {len(texts)} transcripts. Pass one text per waveform."
                )
            tokens = self.tokenizer(texts, padding=True, padding_side="right", return_tensors="np")
            features["labels"] = np.where(tokens["attention_mask"] == 1, tokens["input_ids"], -100)
        return features.convert_to_tensors(return_tensors)


__all__ = ["StableTokenProcessor"]
