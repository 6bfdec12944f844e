"""Configuration of StableToken."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import WhisperConfig


@strict
class StableTokenConfig(WhisperConfig):
    """
    A Whisper with a voting look-up-free quantizer in the middle of its encoder (StableToken, sections 2.1-2.2).

    The defaults are the paper's: whisper-large-v3, 25 Hz, 13 bits (8192 codes), five voters. All fields of
    `WhisperConfig` keep their meaning; build one from a Whisper checkpoint with `from_whisper`.

    Args:
        quantize_position: number of encoder layers below the quantizer ("inserted into the encoder's mid-point",
            section 3); must leave at least one layer above it.
        pooling_size: encoder frames (50 Hz) averaged into one token; 2 gives the paper's 25 Hz. Must divide the
            position table, so that a full window holds whole tokens.
        num_bits: bits per token, `d` in eq. 1; the codebook has `2**num_bits` entries.
        num_voters: parallel projections, `n` in eq. 1; odd, so that every bit has a strict majority.
        use_projection_bias: whether the voters' projections have a bias (`b_i` in eq. 1).
        use_output_bias: whether the projection back to the encoder's width has one. Off, because only without it
            are the parameter counts of Table 12 met to the printed digit.
        reinject_positions: add a second position table, at the token rate, to the quantized states before the upper
            layers. The paper is silent; on, as in GLM-4-Voice, whose tokenizer it builds upon.
        window_overlap: tokens shared by neighbouring windows when audio is longer than the position table. The paper
            cuts without overlap, which loses context at the seams.

    Raises:
        StrictDataclassClassValidationError (of huggingface_hub): even number of voters, quantizer not inside the
            encoder, more bits than ids can be counted with in memory (24), a pooling that does not divide the position
            table, overlap not smaller than a window.
    """

    model_type = "stable_token"

    vocab_size: int = 51866
    num_mel_bins: int = 128
    d_model: int = 1280
    encoder_layers: int = 32
    encoder_attention_heads: int = 20
    encoder_ffn_dim: int = 5120
    decoder_layers: int = 32
    decoder_attention_heads: int = 20
    decoder_ffn_dim: int = 5120
    decoder_start_token_id: int = 50258
    pad_token_id: int | None = 50257
    bos_token_id: int | None = 50257
    eos_token_id: int | list[int] | None = 50257

    quantize_position: int = 16
    pooling_size: int = 2
    num_bits: int = 13
    num_voters: int = 5
    use_projection_bias: bool = True
    use_output_bias: bool = False
    reinject_positions: bool = True
    window_overlap: int = 250

    def __post_init__(self, **kwargs):
        if __name__.startswith("clearspeech."):  # installed: the suite's own classes win over a repository's copies
            kwargs.pop("auto_map", None)
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Part of `@strict` validation: refuses quantizers that cannot vote or do not fit the encoder."""
        super().validate_architecture()
        if self.num_voters < 1 or self.num_voters % 2 == 0:
            raise ValueError(
                f"num_voters must be odd, so that every bit has a strict majority; got {self.num_voters}."
            )
        if not 1 <= self.num_bits <= 24:
            raise ValueError(f"num_bits must be between 1 and 24; got {self.num_bits}.")
        if not 1 <= self.quantize_position < self.encoder_layers:
            raise ValueError(
                f"quantize_position must lie inside the encoder (1 to {self.encoder_layers - 1} for "
                f"encoder_layers={self.encoder_layers}); got {self.quantize_position}."
            )
        if self.pooling_size < 1:
            raise ValueError(f"pooling_size must be at least 1; got {self.pooling_size}.")
        if self.max_source_positions % self.pooling_size:
            raise ValueError(
                f"pooling_size must divide the encoder's {self.max_source_positions} positions; "
                f"got {self.pooling_size}."
            )
        if not 0 <= self.window_overlap < self.max_source_tokens:
            raise ValueError(
                f"window_overlap must be smaller than a window of {self.max_source_tokens} tokens; "
                f"got {self.window_overlap}."
            )

    @property
    def codebook_size(self) -> int:
        """Number of different tokens."""
        return 2**self.num_bits

    @property
    def max_source_tokens(self) -> int:
        """Tokens in one window of the encoder: the position table's length at the token rate."""
        return self.max_source_positions // self.pooling_size

    @property
    def mel_frames_per_token(self) -> int:
        """Mel frames (10 ms each) per token: convolution stride times pooling."""
        return 2 * self.pooling_size

    @classmethod
    def from_whisper(cls, whisper_config: WhisperConfig, **overrides: Any) -> "StableTokenConfig":
        """
        Take the shape of a Whisper model; unless told otherwise, put the quantizer at its encoder's mid-point and let
        neighbouring windows share a third.

        Raises:
            ValueError: the configuration is not a Whisper's.
        """
        if whisper_config.model_type != "whisper":
            raise ValueError(
                f"StableToken starts from a Whisper checkpoint; got model_type={whisper_config.model_type!r}."
            )
        fields = whisper_config.to_dict()
        for derived in ("model_type", "architectures", "transformers_version", "dtype", "torch_dtype"):
            fields.pop(derived, None)
        fields["quantize_position"] = whisper_config.encoder_layers // 2
        fields.update(overrides)
        pooling_size = max(fields.get("pooling_size", cls.pooling_size), 1)  # below 1 is refused by the validation
        fields.setdefault("window_overlap", fields["max_source_positions"] // pooling_size // 3)
        return cls(**fields)
