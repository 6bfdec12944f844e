"""FactoredASRs with random weights on every kind of encoder, and inputs for them, without processors."""

import torch
from transformers import (
    HubertConfig,
    ParakeetEncoderConfig,
    Wav2Vec2Config,
    WavLMConfig,
    WhisperConfig,
)

from clearspeech.configuration.configuration_factored_asr import FactoredASRConfig
from clearspeech.modeling.modeling_factored_asr import FactoredASRForRNNT

SIZES = dict(factor_dim=8, factor_hidden_size=12, decoder_hidden_size=16, vocab_size=11, blank_token_id=10)
CONFORMER = dict(model_type="conformer_encoder", hidden_size=16, num_attention_heads=2, intermediate_size=32)
WAVEFORMS = dict(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    conv_dim=(8, 8),
    conv_kernel=(10, 8),
    conv_stride=(5, 4),
    num_feat_extract_layers=2,
    num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2,
)
ENCODERS = {
    "lstm": dict(model_type="lstm_encoder", input_size=12, hidden_size=16, num_hidden_layers=2),
    "conformer": dict(CONFORMER, input_size=12, num_hidden_layers=2, conv_kernel_size=5),
    "whisper": WhisperConfig(
        d_model=16,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        num_mel_bins=12,
        max_source_positions=50,
        pad_token_id=0,
    ),
    "parakeet": ParakeetEncoderConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_mel_bins=16,
        subsampling_conv_channels=4,
    ),
    "wav2vec2": Wav2Vec2Config(**WAVEFORMS, feat_extract_norm="layer", do_stable_layer_norm=True),
    "wav2vec2, group norm": Wav2Vec2Config(**WAVEFORMS),
    "hubert": HubertConfig(**WAVEFORMS, feat_extract_norm="layer"),
    "wavlm": WavLMConfig(**WAVEFORMS, feat_extract_norm="layer"),
}
LENGTHS = (24, 17, 8)


def build(encoder: str = "lstm", **fields) -> FactoredASRForRNNT:
    return FactoredASRForRNNT(FactoredASRConfig(encoder_config=ENCODERS[encoder], **{**SIZES, **fields})).eval()


def make_inputs(model: FactoredASRForRNNT, lengths=LENGTHS, scale: int = 1) -> dict[str, torch.Tensor]:
    """A padded batch with values behind the end, which must not matter; `lengths` in frames."""
    encoder, config = model.config.encoder_config.model_type, model.config.encoder_config
    if model.config.reads_waveforms:
        scale, shape = 40, ()
    else:
        shape = (config.input_size if hasattr(config, "input_size") else config.num_mel_bins,)
    inputs = torch.randn(len(lengths), max(lengths) * scale, *shape)
    mask = (torch.arange(inputs.shape[1]) < torch.tensor(lengths)[:, None] * scale).long()
    if model.config.reads_waveforms:
        inputs = inputs * mask  # as their feature extractor pads
    return {
        model.main_input_name: inputs.transpose(1, 2) if encoder == "whisper" else inputs,
        "attention_mask": mask,
    }


def alone(model: FactoredASRForRNNT, inputs: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    """One utterance without padding."""
    length = int(inputs["attention_mask"][row].sum())
    name = model.main_input_name
    is_whisper = model.config.encoder_config.model_type == "whisper"
    given = inputs[name][row : row + 1, ..., :length] if is_whisper else inputs[name][row : row + 1, :length]
    return {name: given, "attention_mask": inputs["attention_mask"][row : row + 1, :length]}
