"""Noise-robust, disentangled, discrete speech representations, native to Hugging Face Transformers."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioTokenization,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration.configuration_disentangled_whisper import DisentangledWhisperConfig
from .configuration.configuration_stable_token import StableTokenConfig
from .modeling.modeling_disentangled_whisper import (
    DisentangledWhisperForConditionalGeneration,
    DisentangledWhisperModel,
)
from .modeling.modeling_stable_token import StableTokenForConditionalGeneration, StableTokenModel
from .processing.feature_extraction_stable_token import StableTokenFeatureExtractor
from .processing.pipeline_speech_recognition import SpeechRecognitionPipeline
from .processing.processing_stable_token import StableTokenProcessor

__version__ = "0.1.0"

AutoConfig.register("stable_token", StableTokenConfig)
AutoModelForAudioTokenization.register(StableTokenConfig, StableTokenModel)
AutoModelForSpeechSeq2Seq.register(StableTokenConfig, StableTokenForConditionalGeneration)
AutoFeatureExtractor.register(StableTokenConfig, StableTokenFeatureExtractor)
AutoProcessor.register(StableTokenConfig, StableTokenProcessor)

AutoConfig.register("disentangled_whisper", DisentangledWhisperConfig)
AutoModelForAudioTokenization.register(DisentangledWhisperConfig, DisentangledWhisperModel)
AutoModelForSpeechSeq2Seq.register(DisentangledWhisperConfig, DisentangledWhisperForConditionalGeneration)
AutoFeatureExtractor.register(DisentangledWhisperConfig, StableTokenFeatureExtractor)
AutoProcessor.register(DisentangledWhisperConfig, StableTokenProcessor)

# hands models that have nothing of the suite to the stock pipeline
PIPELINE_REGISTRY.supported_tasks["automatic-speech-recognition"]["impl"] = SpeechRecognitionPipeline
