"""Tiny random models, a character tokenizer and reproducible signals: no network, no training."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, WhisperConfig, WhisperForConditionalGeneration

from clearspeech import (
    DisentangledWhisperConfig,
    DisentangledWhisperForConditionalGeneration,
    StableTokenConfig,
    StableTokenForConditionalGeneration,
)
from clearspeech.processing.character_tokenizer import build_character_tokenizer
from clearspeech.processing.feature_extraction_stable_token import StableTokenFeatureExtractor
from clearspeech.processing.processing_stable_token import StableTokenProcessor


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
