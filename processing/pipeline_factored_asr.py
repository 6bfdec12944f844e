"""Speech recognition through a FactoredASR."""

from typing import Any

import numpy as np
from torch import Tensor
from transformers import AutomaticSpeechRecognitionPipeline, PreTrainedModel

from .pipeline_speech_recognition import WINDOW_SECONDS, SpeechRecognitionPipeline, given_feature_extractor
from .processing_factored_asr import FactoredASRProcessor
from .waveform_checks import check_waveform_for


class FactoredASRPipeline(SpeechRecognitionPipeline):
    """
    `SpeechRecognitionPipeline` for a FactoredASR on any of its encoders, each with its own feature extractor.

    Audio is cut at quiet places into windows of at most 30 s (shorter for a Whisper encoder with a shorter position
    table), and the windows' texts are joined. Search is greedy unless `num_beams` or the model's generation config say
    otherwise.

        transcribe = pipeline("automatic-speech-recognition", model=FOLDER)
        transcribe("speech.wav"), transcribe(["a.wav", "b.wav"], batch_size=2)
        transcribe("speech.wav", generate_kwargs={"num_beams": 4})

    Args:
        model: `FactoredASRForRNNT`.
        kwargs: of any pipeline, among them `feature_extractor` and `tokenizer`, or the `processor` with both.

    Raises:
        ValueError: no feature extractor or no tokenizer, or a feature extractor that makes waveforms of what the
            encoder reads as features, or the other way round.
    """

    served_model_type = "factored_asr"

    def __init__(self, model: PreTrainedModel, **kwargs: Any):
        processor = kwargs.pop("processor", None)
        extractor = given_feature_extractor(kwargs | {"processor": processor})
        tokenizer = kwargs.pop("tokenizer", None)
        tokenizer = processor.tokenizer if tokenizer is None and processor is not None else tokenizer
        if extractor is None or tokenizer is None:
            raise ValueError(
                f"Got a {type(model).__name__} without its feature extractor or tokenizer. Pass both, or the folder "
                "that holds all three."
            )
        if model.main_input_name not in extractor.model_input_names:
            raise ValueError(
                f"A {model.config.encoder_config.model_type} encoder takes {model.main_input_name}, but a "
                f"{type(extractor).__name__} makes {extractor.model_input_names[0]}. Pass the one of the model's "
                "folder."
            )
        self.type = "seq2seq"
        self._default_generation_config = None  # a transducer ends with the speech: there is no longest text
        kwargs |= {"feature_extractor": extractor, "tokenizer": tokenizer}
        processor = FactoredASRProcessor(extractor, tokenizer)
        super(AutomaticSpeechRecognitionPipeline, self).__init__(model, processor=processor, **kwargs)

    def _forward(self, model_inputs: dict[str, Any], **generate_kwargs: Any) -> dict[str, Any]:
        rate = self.feature_extractor.sampling_rate
        inputs = self.processor(audio=self._waveforms(model_inputs), sampling_rate=rate, return_tensors="pt")
        inputs = inputs.to(device=self.device, dtype=self.model.dtype)
        tokens = self.model.generate(**inputs, **self._prepare_generate_kwargs(generate_kwargs))
        return {"is_last": model_inputs["is_last"], "tokens": tokens}

    def _check_waveform(self, waveform: np.ndarray | Tensor | list) -> Tensor:
        return check_waveform_for(self.feature_extractor, waveform)

    def _samples_per_window(self) -> int:
        """The longest audio, in samples, that the encoder sees at once."""
        encoder, longest = self.model.config.encoder_config, WINDOW_SECONDS * self.feature_extractor.sampling_rate
        if encoder.model_type != "whisper":  # whose position table may be shorter
            return longest
        return min(longest, self._samples_for_positions(encoder.max_source_positions))


__all__ = ["FactoredASRPipeline"]
