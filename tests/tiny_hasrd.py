"""Tiny random HASRDs on every kind of encoder, with a semantic book, and what they read."""

import torch
from torch import Tensor
from transformers import (
    FeatureExtractionMixin,
    HubertConfig,
    PreTrainedConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
)

from clearspeech import HasrdConfig, HasrdModel
from clearspeech.configuration.configuration_best_rq import BestRQConfig
from clearspeech.processing.feature_extraction_best_rq import BestRQFeatureExtractor

BLOCKS = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
CONVOLUTIONS = dict(
    conv_dim=(8, 8, 8), conv_kernel=(10, 8, 4), conv_stride=(5, 8, 4), num_conv_pos_embeddings=4, hidden_dropout=0.5
)
GROUPS = dict(num_conv_pos_embedding_groups=2, feat_extract_norm="group")
LAYERS = dict(num_conv_pos_embedding_groups=2, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
FRONT_END = dict(num_mel_bins=8, conv_channels=(8, 12, 16))
ENCODERS = {  # by name; all but the first read waveforms, 160 samples for each token
    "best_rq": lambda: BestRQConfig(**FRONT_END, **BLOCKS, conv_kernel_size=5, codebook_size=16),
    "front_end": lambda: BestRQConfig(**FRONT_END, **(BLOCKS | dict(num_hidden_layers=0)), codebook_size=16),
    "hubert": lambda: HubertConfig(**BLOCKS, **CONVOLUTIONS, **GROUPS),
    "wav2vec2": lambda: Wav2Vec2Config(**BLOCKS, **CONVOLUTIONS, **LAYERS),
    "wavlm": lambda: WavLMConfig(**BLOCKS, **CONVOLUTIONS, **LAYERS),
}
SIZES = dict(num_acoustic_books=3, codebook_size=16, codebook_dim=4, decoder_channels=32)


def make_config(encoder: str | PreTrainedConfig = "best_rq", **fields) -> HasrdConfig:
    """Of a tiny codec with a semantic book of 12 codes of layer 1 and three acoustic books of 16; without a semantic
    book on the bare front-end."""
    encoder_config = ENCODERS[encoder]() if isinstance(encoder, str) else encoder
    sizes = SIZES | dict(semantic_layer=1, num_semantic_codes=12 if encoder_config.num_hidden_layers else 0)
    if encoder_config.model_type != "best_rq":
        sizes["upsampling_ratios"] = (5, 8, 4)
    return HasrdConfig(encoder_config=encoder_config, **(sizes | fields))


def make_hasrd(encoder: str | PreTrainedConfig = "best_rq", **fields) -> HasrdModel:
    """A random codec in evaluation mode; its semantic book is drawn, too, and its layers have different weights."""
    torch.manual_seed(0)
    model = HasrdModel(make_config(encoder, **fields)).eval()
    if model.config.num_semantic_codes:
        fit_at_random(model)
    torch.nn.init.normal_(model.layer_weights)
    return model


def fit_at_random(model: HasrdModel):
    """States that are not there as the semantic book's centroids."""
    codebook = model.semantic_quantizer.codebook
    model.set_semantic_codebook(torch.randn_like(codebook), model.encoder_fingerprint())


def make_feature_extractor(encoder: str = "best_rq") -> FeatureExtractionMixin:
    """What an encoder of these reads, made of samples."""
    if encoder in ("best_rq", "front_end"):
        return BestRQFeatureExtractor(num_mel_bins=8)
    return Wav2Vec2FeatureExtractor(return_attention_mask=True)


def make_inputs(model: HasrdModel, *num_tokens: int, seed: int = 0, padding: int = 0) -> dict[str, Tensor]:
    """Random features or samples of utterances of so many tokens, padded with noise that must not be read."""
    config, generator = model.config, torch.Generator().manual_seed(seed)
    lengths = torch.tensor(num_tokens) * config.inputs_per_token
    longest = int(lengths.max()) + padding * config.inputs_per_token
    name, size = ("input_values", ()) if config.reads_waveforms else ("input_features", (8,))
    inputs = torch.randn(len(lengths), longest, *size, generator=generator)
    return {name: inputs, "attention_mask": (torch.arange(longest) < lengths[:, None]).long()}


def row_of(inputs: dict, row: int, num_tokens: int, model: HasrdModel) -> dict:
    """One utterance without padding, and without a mask."""
    name = model.main_input_name
    return {name: inputs[name][row, None, : num_tokens * model.config.inputs_per_token]}
