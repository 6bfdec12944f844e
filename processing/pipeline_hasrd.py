"""Speech recognition through the recognizer that HASRD's representations are measured with."""

from typing import Any

from .pipeline_factored_asr import FactoredASRPipeline


class HasrdPipeline(FactoredASRPipeline):
    """
    `FactoredASRPipeline`, its windows and its calls, for a `HasrdForCTC`, which is decoded greedily.

        transcribe = pipeline("automatic-speech-recognition", model=FOLDER)
        transcribe("speech.wav"), transcribe(["a.wav", "b.wav"], batch_size=2)
    """

    served_model_type = "hasrd_ctc"

    def _prepare_generate_kwargs(self, generate_kwargs: dict[str, Any], **overrides: Any) -> dict[str, Any]:
        """As they are: there is no generation configuration to merge them with."""
        return generate_kwargs | overrides


__all__ = ["HasrdPipeline"]
