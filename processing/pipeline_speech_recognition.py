"""Speech recognition through `pipeline("automatic-speech-recognition", model=FOLDER)`."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor
from transformers import AutomaticSpeechRecognitionPipeline, FeatureExtractionMixin, GenerationConfig, PreTrainedModel

WINDOW_SECONDS = 30  # longer speech is cut: models are trained on single utterances
REFUSED_OPTIONS = {
    "chunk_length_s": "audio of any length is cut at quiet places already",
    "stride_length_s": "audio of any length is cut at quiet places already, without overlap",
    "return_timestamps": "the suite's models write text without times",
    "return_language": "the suite's models do not tell the language",
    "decoder_kwargs": "no language model decodes here; `generate_kwargs` go to the model's generate",
}


class SpeechRecognitionPipeline(AutomaticSpeechRecognitionPipeline):
    """
    The stock pipeline's calls and results, for models of the suite.

    What differs from the stock one, which would decode a class that it does not know as CTC, without a word:

    * files are read with soundfile (wav, flac, ogg, mp3), so no FFmpeg is needed;
    * audio longer than the model's window is cut at quiet places, and the pieces' texts are joined;
    * `batch_size=` works on utterances of different lengths: features are computed batched, on the model's device;
    * decoding follows the model's own generation config.

    `import clearspeech` makes this class the task's entry. For a SpeechLM it gives `SpeechLMPipeline`, for a
    FactoredASR `FactoredASRPipeline`, for a HasrdForCTC `HasrdPipeline`, and where neither the model nor its feature
    extractor is the suite's, the stock pipeline. The two belong together: half a pair is refused.

    Raises:
        ValueError: a model that writes no text, a model of the suite with a stock feature extractor, or a plain
            Whisper with the suite's, which would read features of the audio's real length as if padded to 30 s.
    """

    served_model_type: str | None = None  # of a subclass: the one whose models it serves
    _load_processor = None  # where there is one: it holds more than the two parts in a SpeechLM's folder

    def __new__(cls, model: PreTrainedModel, **kwargs: Any):
        served_by = cls.class_for(model)
        if served_by is not SpeechRecognitionPipeline:
            return super().__new__(served_by)
        if hasattr(model, "encode_speech") or hasattr(given_feature_extractor(kwargs), "extract"):
            return super().__new__(cls)
        kwargs.pop("processor", None)  # as the stock class, which does not load it
        return AutomaticSpeechRecognitionPipeline(model=model, **kwargs)

    @classmethod
    def class_for(cls, model: PreTrainedModel) -> type["SpeechRecognitionPipeline"]:
        """The class that transcribes this model: a subclass, or one of its own, made for its type, or this one."""
        classes = (each.class_for(model) for each in cls.__subclasses__())
        return next((each for each in classes if each.served_model_type == model.config.model_type), cls)

    def __init__(self, model: PreTrainedModel, **kwargs: Any):
        if not model.can_generate():
            raise ValueError(
                f"Expected a model that writes text with `generate`, got {type(model).__name__}. Load the folder with "
                "AutoModelForSpeechSeq2Seq."
            )
        extractor = given_feature_extractor(kwargs)
        if not hasattr(model, "encode_speech"):
            raise ValueError(
                f"Expected a model of the suite, got {type(model).__name__} with a {type(extractor).__name__}. Such a "
                "plain Whisper is a base to train from: pass its folder as --base_model to a "
                "training recipe (recipes/train_stable_token.py) and transcribe with the folder that it writes."
            )
        if not hasattr(extractor, "extract"):
            raise ValueError(
                f"Expected the suite's feature extractor for {type(model).__name__}, got {type(extractor).__name__}. "
                "Pass the one of the model's folder (AutoProcessor.from_pretrained(FOLDER).feature_extractor)."
            )
        self.type = "seq2seq"
        self._default_generation_config = GenerationConfig(max_length=model.config.max_target_positions)
        # past the stock __init__, whose only further work is to guess `type` from a list of class names
        super(AutomaticSpeechRecognitionPipeline, self).__init__(model, **kwargs)

    def _sanitize_parameters(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """
        The stock pipeline's options for its three steps.

        Raises:
            ValueError: an option that would change nothing here, or that no model of the suite can answer.
        """
        for name, reason in REFUSED_OPTIONS.items():
            value = options.pop(name, None)
            if value:  # the stock pipeline's 0 and False ask for nothing
                raise ValueError(f"Got {name}={value!r}, but {reason}. Leave {name} out.")
        options.pop("ignore_warning", None)  # the stock warning about chunk_length_s
        return super()._sanitize_parameters(**options)

    def preprocess(self, inputs: str | Path | bytes | np.ndarray | Tensor | dict) -> Iterator[dict[str, Any]]:
        """
        Read, resample, check and cut one recording.

        inputs: a path or URL, the bytes of a file, samples `(samples,)` at the model's rate, or a dict with
            `sampling_rate` (Hz) and `raw` or `array`, or with `bytes` or `path` as `datasets` gives undecoded audio.
            Channels of files are averaged.

        Yields pieces: `waveforms` `(1, samples)`, `num_samples` `(1,)`, `is_last`.

        Raises:
            ValueError: a dict without these keys, a file that cannot be decoded, or audio that the feature extractor
                refuses (several channels, integer samples, NaN, too short).
            OSError: the file is missing.
        """
        return self._cut(inputs, self._samples_per_window())

    def _cut(self, inputs: str | Path | bytes | np.ndarray | Tensor | dict, max_samples: int) -> Iterator[dict]:
        """The pieces of a recording, of at most `max_samples`."""
        pieces = cut_at_quiet_places(self._check_waveform(self._read(inputs)), max_samples)
        for index, piece in enumerate(pieces):
            yield {
                "waveforms": piece[None],
                "num_samples": torch.tensor([len(piece)]),
                "is_last": index == len(pieces) - 1,
            }

    def _forward(self, model_inputs: dict[str, Any], **generate_kwargs: Any) -> dict[str, Any]:
        input_features, attention_mask = self.feature_extractor.extract(
            model_inputs["waveforms"], model_inputs["num_samples"]
        )
        tokens = self.model.generate(
            input_features=input_features.to(self.model.dtype),
            attention_mask=attention_mask,
            **self._prepare_generate_kwargs(generate_kwargs),
        )
        return {"is_last": model_inputs["is_last"], "tokens": tokens}

    def postprocess(self, model_outputs: list[dict[str, Any]]) -> dict[str, str]:
        """Decode each piece `(1, text tokens)` and join the texts: `{"text": ...}`."""
        texts = [self._decode_text(piece["tokens"][0]).strip() for piece in model_outputs]
        return {"text": " ".join(text for text in texts if text)}

    def _decode_text(self, tokens: Tensor) -> str:
        """Text of one piece's `(tokens,)`."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def _check_waveform(self, waveform: np.ndarray | Tensor | list) -> Tensor:
        return self.feature_extractor.check_waveform(waveform)

    def _samples_per_window(self) -> int:
        """The longest audio, in samples, that the encoder sees at once."""
        return self._samples_for_positions(self.model.config.max_source_positions)

    def _samples_for_positions(self, num_positions: int) -> int:
        """The longest audio, in samples, whose padded features fit a Whisper encoder's position table."""
        extractor = self.feature_extractor
        samples_per_token = extractor.hop_length * extractor.mel_frames_per_token
        window = num_positions * 2 * extractor.hop_length  # Whisper's convolutions halve
        return window // samples_per_token * samples_per_token - extractor.n_fft // 2

    def _waveforms(self, model_inputs: dict[str, Any]) -> list[Tensor]:
        """A batch's pieces `(samples,)` without the padding."""
        rows = zip(model_inputs["waveforms"], model_inputs["num_samples"].tolist(), strict=True)
        return [waveform[:length] for waveform, length in rows]

    def _read(self, inputs: str | Path | bytes | np.ndarray | Tensor | dict) -> np.ndarray | Tensor:
        """Any accepted input as samples at the feature extractor's rate."""
        if isinstance(inputs, dict) and inputs.keys() & {"raw", "array"} and "sampling_rate" in inputs:
            samples = inputs["raw"] if "raw" in inputs else inputs["array"]
            return self._resample(self._check_waveform(samples).numpy(), inputs["sampling_rate"])
        if isinstance(inputs, dict) and inputs.keys() & {"bytes", "path"}:
            return self._read(inputs["path"] if inputs.get("bytes") is None else inputs["bytes"])
        if isinstance(inputs, dict):
            raise ValueError(
                f'Got a dict with the keys {sorted(inputs)}. Pass "sampling_rate" with "raw" or "array", or a file\'s '
                '"bytes" or "path".'
            )
        if isinstance(inputs, (str, Path)):
            with fsspec.open(str(inputs), "rb") as file:
                return self._decode(file.read(), name=str(inputs))
        if isinstance(inputs, bytes):
            return self._decode(inputs, name=f"{len(inputs)} bytes")
        return inputs

    def _decode(self, content: bytes, name: str) -> np.ndarray:
        """An encoded file as mono samples; `name` is for the error."""
        try:
            samples, sampling_rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise ValueError(f"Cannot decode {name}: {error} Expected wav, flac, ogg or mp3.") from error
        return self._resample(samples.mean(axis=1), sampling_rate)

    def _resample(self, samples: np.ndarray, sampling_rate: int) -> np.ndarray:
        if sampling_rate == self.feature_extractor.sampling_rate:
            return samples
        return soxr.resample(samples, sampling_rate, self.feature_extractor.sampling_rate)


def given_feature_extractor(kwargs: dict[str, Any]) -> FeatureExtractionMixin | None:
    """The feature extractor among a pipeline's arguments, its processor's where only that was given."""
    extractor, processor = kwargs.get("feature_extractor"), kwargs.get("processor")
    return processor.feature_extractor if extractor is None and processor is not None else extractor


def cut_at_quiet_places(waveform: Tensor, max_samples: int, frame_samples: int = 800) -> list[Tensor]:
    """
    Cut audio into pieces of at most `max_samples`; put end to end they are the audio again.

    waveform: `(samples,)`. Each cut lies in the middle of the `frame_samples` (50 ms at 16 kHz) of lowest energy in
    the last third of what would fit, so that words stay whole wherever there is a pause. The last piece has at least
    two of them, enough for every feature extractor of the suite.
    """
    frame_samples = min(frame_samples, max_samples // 3)
    pieces = []
    while len(waveform) > max_samples:
        earliest = max_samples - max_samples // 3
        latest = min(max_samples, max(len(waveform) - 2 * frame_samples, earliest + frame_samples))
        frames = waveform[earliest:latest].unfold(0, frame_samples, frame_samples // 5)
        quietest = int(frames.square().sum(dim=1).argmin())
        cut = earliest + quietest * (frame_samples // 5) + frame_samples // 2
        pieces.append(waveform[:cut])
        waveform = waveform[cut:]
    return [*pieces, waveform]


__all__ = ["SpeechRecognitionPipeline"]
