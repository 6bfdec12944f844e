"""Tiny random FactoredASRs on every kind of encoder, each with its processor."""

import torch
from transformers import (
    ParakeetEncoderConfig,
    ParakeetFeatureExtractor,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
)

from clearspeech import FactoredASRConfig, FactoredASRForRNNT
from clearspeech.processing.feature_extraction_factored_asr import FactoredASRFeatureExtractor
from clearspeech.processing.feature_extraction_stable_token import StableTokenFeatureExtractor
from clearspeech.processing.processing_factored_asr import FactoredASRProcessor
from clearspeech.processing.subword_tokenizer import train_subword_tokenizer

SHAPE = dict(hidden_size=16, num_hidden_layers=1)
BLOCKS = dict(**SHAPE, num_attention_heads=2, intermediate_size=32)
WHISPER = dict(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32, decoder_attention_heads=2)
CONVOLUTIONS = dict(conv_dim=[8] * 7, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)
ENCODERS = {  # by name: configuration and feature extractor
    "lstm": (
        dict(model_type="lstm_encoder", input_size=24, **SHAPE),
        lambda: FactoredASRFeatureExtractor(num_mel_bins=8),
    ),
    "conformer": (
        dict(model_type="conformer_encoder", input_size=24, **BLOCKS, conv_kernel_size=5),
        lambda: FactoredASRFeatureExtractor(num_mel_bins=8),
    ),
    "whisper": (  # with a window of 2 s
        WhisperConfig(**WHISPER, decoder_layers=1, num_mel_bins=16, max_source_positions=100, pad_token_id=0),
        lambda: StableTokenFeatureExtractor(feature_size=16),
    ),
    "parakeet": (
        ParakeetEncoderConfig(**BLOCKS, num_mel_bins=16, subsampling_conv_channels=4),
        lambda: ParakeetFeatureExtractor(feature_size=16),
    ),
    "wav2vec2": (
        Wav2Vec2Config(**BLOCKS, **CONVOLUTIONS, feat_extract_norm="layer", do_stable_layer_norm=True),
        lambda: Wav2Vec2FeatureExtractor(return_attention_mask=True),
    ),
}


def make_factored(encoder: str = "lstm", **fields) -> tuple[FactoredASRForRNNT, FactoredASRProcessor]:
    """A random model in evaluation mode, which writes a letter or two at every frame, and its processor."""
    config, make_extractor = ENCODERS[encoder]
    tokenizer = train_subword_tokenizer(["one two three four", "five six seven eight nine"], 24)
    sizes = dict(factor_dim=8, factor_hidden_size=12, decoder_hidden_size=16, num_decoder_layers=1)
    ids = dict(vocab_size=len(tokenizer) + 1, blank_token_id=len(tokenizer), max_symbols_per_step=2)
    torch.manual_seed(0)
    model = FactoredASRForRNNT(FactoredASRConfig(encoder_config=config, **sizes, **ids, **fields)).eval()
    return model, FactoredASRProcessor(make_extractor(), tokenizer)
