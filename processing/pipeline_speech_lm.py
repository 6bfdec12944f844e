"""Speech recognition, and other questions about speech, through a SpeechLM."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import AutomaticSpeechRecognitionPipeline, GenerationConfig, PreTrainedModel

from ..configuration.configuration_speech_lm import MAX_ANSWER_TOKENS
from .pipeline_speech_recognition import WINDOW_SECONDS, SpeechRecognitionPipeline
from .processing_speech_lm import SpeechLMProcessor
from .speech_tasks import choose_prompt


class SpeechLMPipeline(SpeechRecognitionPipeline):
    """
    `SpeechRecognitionPipeline` for a SpeechLM: audio to speech units, units to text.

    Units are made on the pipeline's device, to which the processor's audio tokenizer is moved. Audio is cut at quiet
    places into windows of at most 30 s, or of the longest audio that the model was trained on; shorter where the
    context would not hold prompt, units and answer even if no two codes merged to one piece. Each window is answered,
    and the answers are joined.

    A call takes two options more: `task`, one that the model was trained on, asked with the first of its prompts; or
    `prompt`, the question itself. Without them a model of several tasks does the first, one of a single task has no
    prompts.

        transcribe = pipeline("automatic-speech-recognition", model=FOLDER)
        transcribe("speech.wav"), transcribe("speech.wav", task="emotion"), transcribe("speech.wav", num_beams=4)

    Answers have at most `max_new_tokens` (150) tokens; search is greedy unless `num_beams` or the model's generation
    config say otherwise.

    Args:
        model: `SpeechLMForCausalLM`.
        processor: its `SpeechLMProcessor`; that of the model's local folder when None. The tokenizer and feature
            extractor that `pipeline` hands on are not used: the processor has its own.

    Raises:
        ValueError: no processor, one that does not fit the model, both task and prompt, a task that the model was not
            trained on, `max_length`, or a context too short for prompt and answer.
    """

    served_model_type = "speech_lm"
    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False

    def __init__(self, model: PreTrainedModel, processor: SpeechLMProcessor | None = None, **kwargs: Any):
        if processor is None and model.name_or_path and Path(model.name_or_path).is_dir():
            processor = SpeechLMProcessor.from_pretrained(model.name_or_path)
        if processor is None:
            raise ValueError(
                f"Got a {type(model).__name__} without its processor. Call SpeechLMPipeline(model=, "
                "processor=), or see what AutoProcessor.from_pretrained says of the model's repository."
            )
        processor.check_model(model)
        self.type = "seq2seq"
        self._default_generation_config = GenerationConfig(
            max_new_tokens=min(MAX_ANSWER_TOKENS, model.config.max_position_embeddings // 2)
        )
        # the processor has its own of both: `pipeline` batches by the ones below, and asks a tokenizer for padding
        kwargs = kwargs | {"tokenizer": None, "feature_extractor": processor.feature_extractor}
        super(AutomaticSpeechRecognitionPipeline, self).__init__(model, processor=processor, **kwargs)
        processor.audio_tokenizer.to(self.device)

    def _sanitize_parameters(
        self, task: str | None = None, prompt: str | None = None, **options: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """The base's options, and `task` or `prompt`, which two steps need: the prompt's length bounds the window."""
        preprocess, forward, postprocess = super()._sanitize_parameters(**options)
        if task is not None or prompt is not None:
            preprocess["prompt"] = forward["prompt"] = choose_prompt(self.processor.tasks, task, prompt)
        if forward.keys() & {"max_new_tokens", "max_length", "generation_config"}:
            preprocess["answer_tokens"] = self._answer_tokens(forward)
        return preprocess, forward, postprocess

    def preprocess(
        self,
        inputs: str | Path | bytes | np.ndarray | Tensor | dict,
        prompt: str | None = None,
        answer_tokens: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """
        As the base's; windows leave room for a prompt and for `answer_tokens`.

        Raises:
            ValueError: the context has no room for a unit beside them.
        """
        context = self.model.config.max_position_embeddings
        answer_tokens = self._answer_tokens({}) if answer_tokens is None else answer_tokens
        prompt = choose_prompt(self.processor.tasks, prompt=prompt)
        prompt_tokens = 0 if prompt is None else len(self.processor.prompt_ids(prompt))
        num_units = context - prompt_tokens - 1 - answer_tokens  # 1 for <speech_end>
        if num_units < 1:
            raise ValueError(
                f"The context of {context} tokens has no room for speech beside a prompt of {prompt_tokens} and an "
                f"answer of {answer_tokens}. Pass a smaller max_new_tokens."
            )
        seconds = min(WINDOW_SECONDS, self.processor.max_seconds or WINDOW_SECONDS)
        window = int(seconds * self.feature_extractor.sampling_rate)
        return self._cut(inputs, min(window, self.processor.max_samples(num_units)))

    def _forward(
        self, model_inputs: dict[str, Any], prompt: str | None = None, **generate_kwargs: Any
    ) -> dict[str, Any]:
        rate = self.feature_extractor.sampling_rate
        waveforms = self._waveforms(model_inputs)
        inputs = self.processor(audio=waveforms, sampling_rate=rate, prompt=prompt, return_tensors="pt")
        inputs = inputs.to(self.device)
        tokens = self.model.generate(**inputs, **self._prepare_generate_kwargs(generate_kwargs))
        return {"is_last": model_inputs["is_last"], "tokens": tokens[:, inputs["input_ids"].shape[1] :]}

    def _decode_text(self, tokens: Tensor) -> str:
        return self.processor.decode(tokens)

    def _check_waveform(self, waveform: np.ndarray | Tensor | list) -> Tensor:
        return self.processor.check_waveform(waveform)

    def _answer_tokens(self, generate_kwargs: dict[str, Any]) -> int:
        """The longest answer that `generate` will write with these arguments. Raises ValueError for `max_length`."""
        given = self._get_set_generation_params({**self._generate_kwargs, **generate_kwargs})
        if given.get("max_length") is not None:
            raise ValueError(
                f"Got max_length={given['max_length']}, which counts the speech, too. Set max_new_tokens, the longest "
                "answer, instead."
            )
        return given.get("max_new_tokens", self._default_generation_config.max_new_tokens)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save model and processor to a folder that `pipeline` loads; arguments as the model's `save_pretrained`."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


__all__ = ["SpeechLMPipeline"]
