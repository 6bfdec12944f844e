"""Configuration of FactoredASR, and of the two encoders that it is trained with from scratch."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, ParakeetEncoderConfig, PreTrainedConfig

from .configuration_kmeans_tokenizer import WAVEFORM_ENCODERS
from .repository_source import without_source


@strict
class LSTMEncoderConfig(PreTrainedConfig):
    """
    "A six layer LSTM encoder with a hidden dimension of 1024" (section 2.4), of stacked frames.

    Args:
        input_size: of a stacked frame, "192-dimensional inputs".
        hidden_size: units of each layer.
        dropout: between layers.
    """

    model_type = "lstm_encoder"

    input_size: int = 192
    hidden_size: int = 1024
    num_hidden_layers: int = 6
    dropout: float = 0.1


@strict
class ConformerEncoderConfig(ParakeetEncoderConfig):
    """
    "We follow Gulati et al. and use a 17 layer encoder with a hidden dimension of 512" (section 2.4), of stacked
    frames. Blocks are Transformers' Parakeet's, without its subsampling: three stacked frames are one already.

    Args:
        input_size: of a stacked frame, "192-dimensional inputs".
        conv_kernel_size: odd; Gulati et al. have 32.

    Further fields are `ParakeetEncoderConfig`'s.
    """

    model_type = "conformer_encoder"

    input_size: int = 192
    hidden_size: int = 512
    num_hidden_layers: int = 17
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    conv_kernel_size: int = 31
    layerdrop: float | int = 0.0


STACKED_FRAME_ENCODERS = {config.model_type: config for config in (LSTMEncoderConfig, ConformerEncoderConfig)}
MEL_ENCODERS = ("whisper", "parakeet_encoder")
ENCODERS = (*STACKED_FRAME_ENCODERS, *MEL_ENCODERS, *WAVEFORM_ENCODERS)


@strict
class FactoredASRConfig(PreTrainedConfig):
    """
    A speech encoder whose frames are factored into content and context, and a transducer that reads the content.

    The defaults are the paper's Conformer run: "factor-dimension F of 512", "three hidden layers, ReLU activations,
    and a hidden dimension of 512", "an LSTM-based decoder with two layers, and a hidden dimension of 1024", "a vocab
    size of 640".

    Args:
        encoder_config: configuration of a frame encoder, or its fields with `model_type`: one of `ENCODERS`. By
            default the Conformer.
        factorize: FR of Table 1. Without it there are no factors and the transducer reads the encoder's own states,
            normalized frame by frame.
        factor_dim: F, of content and of context.
        factor_hidden_size, num_factor_layers: hidden layers of each factor network and each reconstructor.
        dropout: in factor networks and reconstructors; the encoder has its own, the prediction network none.
        vocab_size: the tokenizer's, and one more for blank.
        blank_token_id: the last id.
        pad_token_id: what `generate` writes behind the end of a shorter text.
        max_symbols_per_step: what greedy and beam search write at most within one frame.

    Raises:
        StrictDataclassClassValidationError (of huggingface_hub): an encoder without frames that are known here, sizes
            below 1, or a blank that is not the last id.
    """

    model_type = "factored_asr"
    sub_configs = {"encoder_config": AutoConfig}

    encoder_config: dict[str, Any] | PreTrainedConfig | None = None
    factorize: bool = True
    factor_dim: int = 512
    factor_hidden_size: int = 512
    num_factor_layers: int = 3
    dropout: float = 0.1
    vocab_size: int = 641
    blank_token_id: int = 640
    pad_token_id: int = 0
    decoder_hidden_size: int = 1024
    num_decoder_layers: int = 2
    hidden_act: str = "relu"
    max_symbols_per_step: int = 10
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any):
        if not isinstance(self.encoder_config, PreTrainedConfig):
            self.encoder_config = encoder_config_from(self.encoder_config or {"model_type": "conformer_encoder"})
        kwargs["is_encoder_decoder"] = True  # its beginning of text is `decoder_start_token_id`
        super().__post_init__(**without_source(kwargs))

    def validate_architecture(self):
        """Part of `@strict` validation: an encoder that gives frames, and ids that fit one another."""
        if self.encoder_config.model_type not in ENCODERS:
            raise ValueError(
                f"the encoder must give a state for each frame, as {', '.join(ENCODERS)} do; got "
                f"model_type={self.encoder_config.model_type!r}."
            )
        sizes = ("factor_dim", "factor_hidden_size", "decoder_hidden_size", "num_decoder_layers")
        for name in (*sizes, "max_symbols_per_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.blank_token_id != self.vocab_size - 1:
            raise ValueError(
                f"blank_token_id must be the last of vocab_size={self.vocab_size} ids; got {self.blank_token_id}."
            )

    @property
    def reads_waveforms(self) -> bool:
        """Whether the encoder takes `input_values`, samples at 16 kHz; else it takes `input_features`."""
        return self.encoder_config.model_type in WAVEFORM_ENCODERS

    @property
    def content_size(self) -> int:
        """Of what the transducer reads."""
        return self.factor_dim if self.factorize else self.encoder_config.hidden_size


def encoder_config_from(fields: dict[str, Any]) -> PreTrainedConfig:
    """
    A configuration from its fields, of the suite's own encoders also where the suite is not installed.

    Raises:
        ValueError: no `model_type`, or one that nothing knows.
    """
    if "model_type" not in fields:
        raise ValueError(f"encoder_config needs a model_type, one of {', '.join(ENCODERS)}; got {sorted(fields)}.")
    if fields["model_type"] in STACKED_FRAME_ENCODERS:
        return STACKED_FRAME_ENCODERS[fields["model_type"]](
            **{name: value for name, value in fields.items() if name != "model_type"}
        )
    return AutoConfig.for_model(**fields)


__all__ = ["FactoredASRConfig"]
