"""Noise-robust, disentangled, discrete speech representations, native to Hugging Face Transformers."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioTokenization,
    AutoModelForCausalLM,
    AutoModelForCTC,
    AutoModelForPreTraining,
    AutoModelForRNNT,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration.configuration_best_rq import BestRQConfig
from .configuration.configuration_disentangled_whisper import DisentangledWhisperConfig
from .configuration.configuration_factored_asr import ConformerEncoderConfig, FactoredASRConfig, LSTMEncoderConfig
from .configuration.configuration_hasrd import HasrdConfig
from .configuration.configuration_hasrd_ctc import HasrdCTCConfig
from .configuration.configuration_kmeans_tokenizer import KMeansTokenizerConfig
from .configuration.configuration_speech_lm import SpeechLMConfig
from .configuration.configuration_stable_token import StableTokenConfig
from .modeling.modeling_best_rq import BestRQForPreTraining, BestRQModel
from .modeling.modeling_disentangled_whisper import (
    DisentangledWhisperForConditionalGeneration,
    DisentangledWhisperModel,
)
from .modeling.modeling_factored_asr import FactoredASRForRNNT
from .modeling.modeling_hasrd import HasrdModel
from .modeling.modeling_hasrd_ctc import HasrdForCTC
from .modeling.modeling_kmeans_tokenizer import KMeansTokenizerModel
from .modeling.modeling_speech_lm import SpeechLMForCausalLM
from .modeling.modeling_stable_token import StableTokenForConditionalGeneration, StableTokenModel
from .processing.feature_extraction_best_rq import BestRQFeatureExtractor
from .processing.feature_extraction_factored_asr import FactoredASRFeatureExtractor
from .processing.feature_extraction_stable_token import StableTokenFeatureExtractor
from .processing.pipeline_factored_asr import FactoredASRPipeline  # noqa: F401  the task's entry finds its subclasses
from .processing.pipeline_hasrd import HasrdPipeline  # noqa: F401
from .processing.pipeline_speech_lm import SpeechLMPipeline  # noqa: F401
from .processing.pipeline_speech_recognition import SpeechRecognitionPipeline
from .processing.processing_factored_asr import FactoredASRProcessor
from .processing.processing_speech_lm import SpeechLMProcessor
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

AutoConfig.register("kmeans_tokenizer", KMeansTokenizerConfig)
AutoModelForAudioTokenization.register(KMeansTokenizerConfig, KMeansTokenizerModel)

AutoConfig.register("speech_lm", SpeechLMConfig)
AutoModelForCausalLM.register(SpeechLMConfig, SpeechLMForCausalLM)
AutoModelForSpeechSeq2Seq.register(SpeechLMConfig, SpeechLMForCausalLM)  # where the recognition pipeline looks
AutoProcessor.register(SpeechLMConfig, SpeechLMProcessor)

AutoConfig.register("lstm_encoder", LSTMEncoderConfig)
AutoConfig.register("conformer_encoder", ConformerEncoderConfig)
AutoConfig.register("factored_asr", FactoredASRConfig)
AutoModelForRNNT.register(FactoredASRConfig, FactoredASRForRNNT)
AutoFeatureExtractor.register(FactoredASRConfig, FactoredASRFeatureExtractor)
AutoProcessor.register(FactoredASRConfig, FactoredASRProcessor)

AutoConfig.register("best_rq", BestRQConfig)
AutoModel.register(BestRQConfig, BestRQModel)
AutoModelForPreTraining.register(BestRQConfig, BestRQForPreTraining)
AutoFeatureExtractor.register(BestRQConfig, BestRQFeatureExtractor)

AutoConfig.register("hasrd", HasrdConfig)
AutoModel.register(HasrdConfig, HasrdModel)
AutoModelForAudioTokenization.register(HasrdConfig, HasrdModel)
AutoFeatureExtractor.register(HasrdConfig, BestRQFeatureExtractor)

AutoConfig.register("hasrd_ctc", HasrdCTCConfig)
AutoModelForCTC.register(HasrdCTCConfig, HasrdForCTC)
AutoFeatureExtractor.register(HasrdCTCConfig, BestRQFeatureExtractor)
AutoProcessor.register(HasrdCTCConfig, FactoredASRProcessor)

# hands models that have nothing of the suite to the stock pipeline, which does not look for transducers
PIPELINE_REGISTRY.supported_tasks["automatic-speech-recognition"]["impl"] = SpeechRecognitionPipeline
PIPELINE_REGISTRY.supported_tasks["automatic-speech-recognition"]["pt"] += (AutoModelForRNNT,)
