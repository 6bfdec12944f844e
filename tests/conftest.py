"""Tiny random models, a character tokenizer and reproducible signals: no network, no training."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import numpy as np
import pytest
import torch
from transformers import (
    GenerationConfig,
    GPT2Config,
    PreTrainedTokenizerFast,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from clearspeech import (
    DisentangledWhisperConfig,
    DisentangledWhisperForConditionalGeneration,
    KMeansTokenizerConfig,
    KMeansTokenizerModel,
    SpeechLMConfig,
    SpeechLMForCausalLM,
    StableTokenConfig,
    StableTokenForConditionalGeneration,
)
from clearspeech.processing.character_tokenizer import build_character_tokenizer
from clearspeech.processing.feature_extraction_stable_token import StableTokenFeatureExtractor
from clearspeech.processing.processing_speech_lm import SpeechLMProcessor
from clearspeech.processing.processing_stable_token import StableTokenProcessor
from clearspeech.processing.unit_pieces import UnitPieces


@pytest.fixture(autouse=True)
def seed():
    """Every test starts from the same random state."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def make_speech():
    """`make_speech(num_samples, seed=0)`: noise `(samples,)`, float32, whose loudness swings four times a second."""

    def make(num_samples: int, seed: int = 0) -> np.ndarray:
        noise = np.random.default_rng(seed).standard_normal(num_samples)
        loudness = 0.1 * np.sin(4 * np.pi * np.arange(num_samples) / 16000) ** 2
        return (noise * loudness).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Ids 0 end of text (and padding), 1 start of transcript, 2 unknown, then space, apostrophe and letters."""
    return build_character_tokenizer()


@pytest.fixture
def tiny_config() -> StableTokenConfig:
    """Two layers below the quantizer's position and one above, 4 bits, a window of two seconds."""
    return StableTokenConfig(
        vocab_size=31,
        num_mel_bins=16,
        d_model=32,
        encoder_layers=3,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=64,
        max_source_positions=100,
        max_target_positions=24,
        decoder_start_token_id=1,
        bos_token_id=1,
        eos_token_id=0,
        pad_token_id=0,
        quantize_position=2,
        num_bits=4,
        num_voters=3,
        window_overlap=10,
        init_std=0.5,  # large enough for the text to depend on the audio
    )


@pytest.fixture
def tiny_model(tiny_config) -> StableTokenForConditionalGeneration:
    """A random recognizer in evaluation mode that writes eight letters."""
    torch.manual_seed(0)
    model = StableTokenForConditionalGeneration(tiny_config).eval()
    model.generation_config = eight_letters()
    return model


@pytest.fixture
def tiny_disentangled(tiny_config) -> DisentangledWhisperForConditionalGeneration:
    """`tiny_model`'s Whisper with a codebook and a noise head inside, and its window."""
    fields = dict(codebook_size=32, codebook_dim=8, noise_head_dim=16, noise_labels=["rain", "wind"])
    torch.manual_seed(0)
    config = DisentangledWhisperConfig(**whisper_fields(tiny_config), **fields, window_overlap=10)
    model = DisentangledWhisperForConditionalGeneration(config).eval()
    model.generation_config = eight_letters(num_beams=2)
    return model


def eight_letters(**options) -> GenerationConfig:
    ids = dict(decoder_start_token_id=1, bos_token_id=1, eos_token_id=0, pad_token_id=0)
    return GenerationConfig(max_length=9, suppress_tokens=[0, 1, 2, 3, 4], **ids, **options)


def whisper_fields(config: WhisperConfig) -> dict:
    """What a configuration says of its Whisper alone."""
    names = WhisperConfig().to_dict().keys() - {"model_type"}
    return {name: value for name, value in config.to_dict().items() if name in names}


@pytest.fixture
def tiny_processor(tokenizer, tiny_config) -> StableTokenProcessor:
    return StableTokenProcessor(StableTokenFeatureExtractor(feature_size=tiny_config.num_mel_bins), tokenizer)


@pytest.fixture
def tiny_folder(tiny_model, tiny_processor, tmp_path):
    """A checkpoint folder as a trainer leaves it: weights, configuration, processor; no source code."""
    folder = tmp_path / "checkpoint"
    tiny_model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_whisper_folder(tiny_config, tiny_processor, tmp_path):
    """A random Whisper as `from_whisper` and the recipes take it, with a window of 20 seconds, and its processor."""
    window = dict(max_source_positions=1000, max_target_positions=64, begin_suppress_tokens=None)
    config = WhisperConfig(**whisper_fields(tiny_config) | window)
    folder = tmp_path / "whisper"
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_speech_processor(tiny_model, tiny_processor, tokenizer) -> SpeechLMProcessor:
    """A tiny tokenizer's codes as units (StableToken's are 16), and the character tokenizer's 31 rows of text."""
    return SpeechLMProcessor(tiny_processor.feature_extractor, tiny_model.model, tokenizer, text_vocab_size=31)


@pytest.fixture
def tiny_kmeans_processor() -> SpeechLMProcessor:
    """16 clusters of a random wav2vec 2.0's states as units, without text."""
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    convolutions = dict(conv_dim=[8] * 7, num_conv_pos_embedding_groups=2, num_conv_pos_embeddings=4)
    encoder_config = Wav2Vec2Config(**sizes, **convolutions, feat_extract_norm="layer", do_stable_layer_norm=True)
    torch.manual_seed(0)
    model = KMeansTokenizerModel(KMeansTokenizerConfig(encoder_config=encoder_config, layer=1, codebook_size=16))
    model.set_centroids(torch.randn(16, 16))
    return SpeechLMProcessor(Wav2Vec2FeatureExtractor(return_attention_mask=True), model)


@pytest.fixture
def tiny_pieces() -> UnitPieces:
    """24 pieces of 16 codes: an even code is often followed by its odd neighbour, and the two are then one."""
    rows = np.random.default_rng(0).integers(0, 8, (200, 10))
    return UnitPieces.train([[code for each in row for code in (2 * each, 2 * each + 1)] for row in rows], 24, 16)


@pytest.fixture
def make_speech_lm():
    """
    `make_speech_lm(num_speech_units)`: a random SpeechLM for the character tokenizer, with a context of 96 tokens,
    that writes eight letters.
    """

    def make(num_speech_units: int) -> SpeechLMForCausalLM:
        torch.manual_seed(0)
        sizes = dict(n_embd=32, n_layer=2, n_head=2, n_positions=96, initializer_range=0.5)
        text_config = GPT2Config(vocab_size=31, bos_token_id=0, eos_token_id=0, **sizes)
        model = SpeechLMForCausalLM(SpeechLMConfig.from_text_config(text_config, num_speech_units)).eval()
        no_letters = [0, 1, 2, 3, 4, *range(31, 33 + num_speech_units)]
        ends = dict(eos_token_id=31, pad_token_id=0, max_new_tokens=8)
        model.generation_config = GenerationConfig(**ends, suppress_tokens=no_letters)
        return model

    return make


@pytest.fixture
def tiny_speech_lm(make_speech_lm, tiny_speech_processor) -> SpeechLMForCausalLM:
    """For the units of `tiny_speech_processor`."""
    return make_speech_lm(tiny_speech_processor.num_speech_units)


@pytest.fixture
def tiny_speech_folder(tiny_speech_lm, tiny_speech_processor, tmp_path):
    """A SpeechLM's checkpoint folder: weights, processor, and the audio tokenizer inside it; no source code."""
    folder = tmp_path / "speech_lm"
    tiny_speech_lm.save_pretrained(folder)
    tiny_speech_processor.save_pretrained(folder)
    return folder
