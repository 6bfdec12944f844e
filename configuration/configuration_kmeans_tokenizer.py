"""Configuration of the k-means tokenizer."""

from math import prod
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .repository_source import without_source

WAVEFORM_ENCODERS = ("hubert", "wav2vec2", "wavlm")
SAMPLES_PER_MEL_FRAME = 160  # 10 ms at 16 kHz
WAVLM_LARGE = dict(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
)


def check_layer(encoder_config: PreTrainedConfig, layer: int):
    """Raise ValueError for an encoder that the k-means tokenizer cannot read, or a layer that it does not have."""
    if encoder_config.model_type not in ("whisper", *WAVEFORM_ENCODERS):
        known = ", ".join(("whisper", *WAVEFORM_ENCODERS))
        raise ValueError(f"the encoder must be one of {known}; got model_type={encoder_config.model_type!r}.")
    num_layers = encoder_config.num_hidden_layers
    if not 0 <= layer <= num_layers:
        raise ValueError(
            f"layer {layer} does not exist: this {encoder_config.model_type} encoder has 1 to {num_layers}, and 0 is "
            "what goes into the first."
        )


@strict
class KMeansTokenizerConfig(PreTrainedConfig):
    """
    A speech encoder's layer, cut into clusters: how the SLD paper makes its units (section 4.1, "Discrete Speech
    Tokens").

    Args:
        encoder_config: configuration of a Whisper, HuBERT, wav2vec 2.0 or WavLM, or its fields; by default the shape
            of "WavLM-large". It names all layers of the checkpoint, also those above `layer`, which are not kept.
        layer: which entry of `hidden_states`, 0 being what goes into the first layer; 23 in the paper's code.
        codebook_size: number of clusters, "2000 clusters".

    Raises:
        StrictDataclassClassValidationError (of huggingface_hub): another kind of encoder, a layer that it does not
            have, no cluster.
    """

    model_type = "kmeans_tokenizer"
    sub_configs = {"encoder_config": AutoConfig}

    encoder_config: dict[str, Any] | PreTrainedConfig | None = None
    layer: int = 23
    codebook_size: int = 2000

    def __post_init__(self, **kwargs: Any):
        if not isinstance(self.encoder_config, PreTrainedConfig):
            fields = {"model_type": "wavlm", **WAVLM_LARGE} if self.encoder_config is None else self.encoder_config
            self.encoder_config = AutoConfig.for_model(**fields)
        super().__post_init__(**without_source(kwargs))

    def validate_architecture(self):
        """Part of `@strict` validation: refuses encoders and layers that there are not."""
        check_layer(self.encoder_config, self.layer)
        if self.codebook_size < 1:
            raise ValueError(f"codebook_size must be at least 1; got {self.codebook_size}.")

    @property
    def reads_waveforms(self) -> bool:
        """Whether the encoder takes `input_values`, samples at 16 kHz; else it takes `input_features`, log-mel."""
        return self.encoder_config.model_type in WAVEFORM_ENCODERS

    @property
    def mel_frames_per_token(self) -> int:
        """Token rate in units of 10 ms: 2 for Whisper and for the usual convolutions, 50 tokens a second."""
        if self.reads_waveforms:
            return prod(self.encoder_config.conv_stride) // SAMPLES_PER_MEL_FRAME
        return 2

    @property
    def max_source_tokens(self) -> int:
        """Tokens in one window of a Whisper: its position table. Encoders of waveforms have no table."""
        return self.encoder_config.max_source_positions

    @property
    def window_overlap(self) -> int:
        """Tokens shared by neighbouring windows when audio is longer than a Whisper's position table: a third."""
        return self.max_source_tokens // 3


__all__ = ["KMeansTokenizerConfig"]
