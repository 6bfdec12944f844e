"""Configuration of StableToken."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import WhisperConfig

from .whisper_tokenizer import WhisperTokenizerConfig


@strict
class StableTokenConfig(WhisperTokenizerConfig):
    """
    A Whisper with a voting look-up-free quantizer in the middle of its encoder (StableToken, sections 2.1-2.2).

    The defaults are the paper's: whisper-large-v3, 25 Hz, 13 bits (8192 codes), five voters. All fields of
    `WhisperConfig` keep their meaning; build one from a Whisper checkpoint with `from_whisper`.

    Args:
        quantize_position: number of encoder layers below the quantizer ("inserted into the encoder's mid-point",
            section 3); must leave at least one layer above it.
        num_bits: bits per token, `d` in eq. 1; the codebook has `2**num_bits` entries.
        num_voters: parallel projections, `n` in eq. 1; odd, so that every bit has a strict majority.
        use_projection_bias: whether the voters' projections have a bias (`b_i` in eq. 1).
        use_output_bias: whether the projection back to the encoder's width has one. Off, because only without it
            are the parameter counts of Table 12 met to the printed digit.
        reinject_positions: add a second position table, at the token rate, to the quantized states before the upper
            layers. The paper is silent; on, as in GLM-4-Voice, whose tokenizer it builds upon.
        pooling_size, window_overlap: see `WhisperTokenizerConfig`; the paper cuts long audio without overlap, which
            loses context at the seams.

    Raises:
        StrictDataclassClassValidationError (of huggingface_hub): even number of voters, quantizer not inside the
            encoder, more bits than ids can be counted with in memory (24), and what `WhisperTokenizerConfig` refuses.
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
    num_bits: int = 13
    num_voters: int = 5
    use_projection_bias: bool = True
    use_output_bias: bool = False
    reinject_positions: bool = True

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

    @property
    def codebook_size(self) -> int:
        """Number of different tokens."""
        return 2**self.num_bits

    @classmethod
    def from_whisper(cls, whisper_config: WhisperConfig, **overrides: Any) -> "StableTokenConfig":
        """
        Take the shape of a Whisper model; unless told otherwise, put the quantizer at its encoder's mid-point and let
        neighbouring windows share a third.

        Raises:
            ValueError: the configuration is not a Whisper's.
        """
        if whisper_config.model_type == "whisper":  # anything else is refused below
            overrides.setdefault("quantize_position", whisper_config.encoder_layers // 2)
        return super().from_whisper(whisper_config, **overrides)
