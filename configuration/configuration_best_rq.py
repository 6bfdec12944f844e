"""Configuration of BEST-RQ, the self-supervised encoder of HASRD."""

from collections.abc import Sequence
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import ParakeetEncoderConfig

from .repository_source import without_source

SAMPLES_PER_MEL_FRAME = 128  # 8 ms at 16 kHz


@strict
class BestRQConfig(ParakeetEncoderConfig):
    """
    A convolutional front-end over log-mel frames, a Conformer, and the random projection that it is trained with
    (HASRD, sections 2.1 and 3, "Encoder").

    The defaults are the paper's BestRQ+ of 62.0 M parameters. Its text has an "attention dimension" of 512, which 12
    heads do not divide; section 4.2 has 516. What it leaves open is as in its reference [29], SpeechBrain's BEST-RQ.

    Args:
        num_mel_bins: of each mel frame of 8 ms.
        conv_channels: widths of the front-end, before its first block and after each; "two 1D-CNN blocks", "a latent
            dimension of 1024".
        conv_kernel, conv_stride: of its strided convolutions, "a kernel size of 4, a stride of 2".
        residual_dilations: "three residual units, each with a 1D-CNN and dilation rates of {1, 3, 9}".
        separable: "depthwise separable convolutions" in the residual units.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: of the Conformer; without layers the
            front-end is all there is.
        conv_kernel_size: of the Conformer's convolutions; odd.
        codebook_size, codebook_dim: of the random projection quantizer.
        mask_probability: spans for each mel frame of an utterance. It is not the share of masked frames, which is
            `mask_probability * mask_length`, 60 %.
        mask_length: of a span, in mel frames: one token, or several.
        mask_std: deviation of the noise that stands in masked frames; normalized ones have 1.

    Of `ParakeetEncoderConfig`'s further fields, those of its blocks are meant as they are there: `dropout`,
    `activation_dropout`, `attention_dropout`, `attention_bias`, `convolution_bias`, `hidden_act`,
    `max_position_embeddings`. Those of its front-end, `subsampling_...` and `scale_input`, say nothing here.

    Raises:
        StrictDataclassClassValidationError (of huggingface_hub): no front-end block, sizes below 1, heads that do not
            divide `hidden_size` or an odd one (relative positions are sines and cosines), an even `conv_kernel_size`,
            a `conv_kernel` that does not make one frame of every `conv_stride`, a `layerdrop` or
            `dropout_positions`, which nothing here follows, spans that are no whole
            tokens or mask all of an utterance.
    """

    model_type = "best_rq"

    num_mel_bins: int = 80
    conv_channels: Sequence[int] = (256, 512, 1024)
    conv_kernel: int = 4
    conv_stride: int = 2
    residual_dilations: Sequence[int] = (1, 3, 9)
    separable: bool = True
    hidden_size: int = 516
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 1024
    hidden_act: str = "gelu"
    conv_kernel_size: int = 31
    layerdrop: float | int = 0.0
    scale_input: bool = False
    codebook_size: int = 8192
    codebook_dim: int = 16
    mask_probability: float = 0.15
    mask_length: int = 4
    mask_std: float = 0.1

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**without_source(kwargs))

    def validate_architecture(self):
        """Part of `@strict` validation: sizes that fit one another."""
        if len(self.conv_channels) < 2:
            raise ValueError(f"conv_channels needs the widths around one block at least; got {self.conv_channels}.")
        sizes = ("num_mel_bins", "conv_stride", "hidden_size", "num_attention_heads", "codebook_size", "codebook_dim")
        for name in (*sizes, "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.num_hidden_layers < 0:
            raise ValueError(f"num_hidden_layers must be at least 0; got {self.num_hidden_layers}.")
        if self.hidden_size % self.num_attention_heads or self.hidden_size % 2:
            raise ValueError(
                f"hidden_size must be even and a multiple of num_attention_heads={self.num_attention_heads}; got "
                f"{self.hidden_size}."
            )
        if self.conv_kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel_size must be odd; got {self.conv_kernel_size}.")
        if self.conv_kernel < self.conv_stride or (self.conv_kernel - self.conv_stride) % 2:
            raise ValueError(
                f"conv_kernel must exceed conv_stride={self.conv_stride} by an even number; got {self.conv_kernel}."
            )
        for name in ("layerdrop", "dropout_positions"):
            if getattr(self, name):
                raise ValueError(f"{name} must be 0, as nothing here follows it; got {getattr(self, name)}.")
        if self.mask_length < 1 or self.mask_length % self.frames_per_token:
            raise ValueError(
                f"mask_length must be a multiple of the {self.frames_per_token} mel frames of a token; got "
                f"{self.mask_length}."
            )
        if not 0 < self.mask_probability * self.mask_length < 1:
            raise ValueError(
                f"mask_probability={self.mask_probability} of starting a span of mask_length={self.mask_length} mel "
                f"frames masks {self.mask_probability * self.mask_length:.0%} of them: it must be between 0 and 100 %."
            )

    @property
    def frames_per_token(self) -> int:
        """Mel frames for each token."""
        return self.conv_stride ** (len(self.conv_channels) - 1)

    @property
    def samples_per_token(self) -> int:
        """Samples at 16 kHz for each token."""
        return SAMPLES_PER_MEL_FRAME * self.frames_per_token


__all__ = ["BestRQConfig"]
