"""Configuration of HASRD."""

from math import log2, prod
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .configuration_best_rq import BestRQConfig
from .configuration_kmeans_tokenizer import WAVEFORM_ENCODERS
from .repository_source import without_source

ENCODERS = ("best_rq", *WAVEFORM_ENCODERS)
SAMPLING_RATE = 16000  # Hz
UPSAMPLING_RATIOS = {512: (8, 8, 4, 2), 320: (8, 5, 4, 2)}  # by samples per token; the first are the paper's


@strict
class HasrdConfig(PreTrainedConfig):
    """
    A speech encoder, a k-means book of one of its layers, residual books of all of them, and DAC's decoder.

    The defaults are the paper's HASRD (BestRQ+): "increasing the attention dimension from 516 to 768", "layer n_s = 8
    yields the best ASR performance", 3.1 kbps, which are one semantic and nine acoustic books of 1024 codes, decoder
    "strides [8, 8, 4, 2] and a latent dimension of 1536". With a HuBERT it is HASRD (HuBERT): 4.5 kbps, "8 RVQ + 1
    k-means". With `num_semantic_codes=0` and a BestRQ of 0 layers it is a codec of Table 1, DAC+fbank: residual books
    alone, of the front-end's output as it is.

    Args:
        encoder_config: configuration of an encoder of `ENCODERS`, or its fields with `model_type`. By default a BestRQ
            of the paper's size.
        semantic_layer: n_s, which entry of `hidden_states`, 0 being what goes into the first layer.
        num_semantic_codes: size of the semantic book; 0 for none. The paper's bitrates make it 1024.
        num_acoustic_books: by default 9, or 8 on an encoder of waveforms.
        codebook_size, codebook_dim: of each acoustic book.
        decoder_channels: width of the decoder before its first block, halved by each.
        upsampling_ratios: strides of the decoder's blocks, whose product is the samples of one token; by default those
            that the paper's decoder has for 512, and DAC-like ones for the 320 of HuBERT.
        residual_dilations: of the decoder's residual units; separable: their convolutions are depthwise separable.
        quantizer_dropout: share of training utterances whose acoustic books end early. 0.5 in DAC's configuration for
            16 kHz; the paper does not say.
        semantic_fingerprint: of the encoder's weights and the layer that the semantic book was fitted on; see
            `HasrdModel.set_semantic_codebook`.
        max_source_tokens: longer audio is encoded in windows of this many tokens; sampling_rate: in Hz, of all of the
            encoders.

    Raises:
        StrictDataclassClassValidationError (of huggingface_hub): another kind of encoder, a layer that it does not
            have, no book, ratios that do not make a token's samples, sizes that are no number of codes, another
            sampling rate.
    """

    model_type = "hasrd"
    sub_configs = {"encoder_config": AutoConfig}

    encoder_config: dict[str, Any] | PreTrainedConfig | None = None
    semantic_layer: int = 8
    num_semantic_codes: int = 1024
    num_acoustic_books: int | None = None
    codebook_size: int = 1024
    codebook_dim: int = 8
    decoder_channels: int = 1536
    upsampling_ratios: list[int] | tuple[int, ...] | None = None
    residual_dilations: list[int] | tuple[int, ...] = (1, 3, 9)
    separable: bool = True
    quantizer_dropout: float = 0.5
    semantic_fingerprint: str | None = None
    max_source_tokens: int = 1000
    sampling_rate: int = SAMPLING_RATE

    def __post_init__(self, **kwargs: Any):
        if not isinstance(self.encoder_config, PreTrainedConfig):
            self.encoder_config = encoder_config_from(
                self.encoder_config or {"model_type": "best_rq", "hidden_size": 768}
            )
        if self.num_acoustic_books is None:
            self.num_acoustic_books = 8 if self.reads_waveforms else 9
        if self.upsampling_ratios is None:
            self.upsampling_ratios = UPSAMPLING_RATIOS.get(self._encoder_hop(), ())
        super().__post_init__(**without_source(kwargs))

    def validate_architecture(self):
        """Part of `@strict` validation: books, layers and strides that fit the encoder."""
        encoder = self.encoder_config
        if encoder.model_type not in ENCODERS:
            raise ValueError(
                f"the encoder must be one of {', '.join(ENCODERS)}; got model_type={encoder.model_type!r}."
            )
        hop = self._encoder_hop()
        if prod(self.upsampling_ratios) != hop or any(ratio < 2 for ratio in self.upsampling_ratios):
            raise ValueError(
                f"upsampling_ratios must be at least 2 each and multiply to the {hop} samples of one token of this "
                f"{encoder.model_type} encoder; got {tuple(self.upsampling_ratios)}."
            )
        if self.num_semantic_codes and not 0 <= self.semantic_layer <= encoder.num_hidden_layers:
            raise ValueError(
                f"semantic_layer {self.semantic_layer} does not exist: this {encoder.model_type} encoder has 1 to "
                f"{encoder.num_hidden_layers}, and 0 is what goes into the first."
            )
        if self.num_semantic_codes < 0 or self.num_acoustic_books < 0 or self.num_books < 1:
            raise ValueError(
                f"a codec needs a book; got num_semantic_codes={self.num_semantic_codes} and "
                f"num_acoustic_books={self.num_acoustic_books}."
            )
        if self.decoder_channels < 1 or self.decoder_channels % 2 ** len(self.upsampling_ratios):
            raise ValueError(
                f"decoder_channels must halve {len(self.upsampling_ratios)} times; got {self.decoder_channels}."
            )
        if not 0 <= self.quantizer_dropout <= 1:
            raise ValueError(f"quantizer_dropout is a share in 0..1; got {self.quantizer_dropout}.")
        for name in ("codebook_size", "codebook_dim", "max_source_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.sampling_rate != SAMPLING_RATE:
            raise ValueError(
                f"sampling_rate must be {SAMPLING_RATE}, at which every encoder reads its {hop} samples of a token; "
                f"got {self.sampling_rate}. Resample the audio."
            )

    def _encoder_hop(self) -> int:
        """Samples between two states of the encoder; 0 of one that is not known here."""
        if self.reads_waveforms:
            return prod(self.encoder_config.conv_stride)
        return self.encoder_config.samples_per_token if self.encoder_config.model_type == "best_rq" else 0

    @property
    def reads_waveforms(self) -> bool:
        """Whether the encoder takes `input_values`, samples at 16 kHz; else it takes `input_features`, log-mel."""
        return self.encoder_config.model_type in WAVEFORM_ENCODERS

    @property
    def hidden_size(self) -> int:
        """Of the encoder's states and all quantized ones."""
        return self.encoder_config.hidden_size

    @property
    def book_sizes(self) -> list[int]:
        """Number of codes of each book, the semantic one first."""
        semantic = [self.num_semantic_codes] if self.num_semantic_codes else []
        return semantic + [self.codebook_size] * self.num_acoustic_books

    @property
    def num_books(self) -> int:
        return len(self.book_sizes)

    @property
    def fewest_acoustic_books(self) -> int:
        """That an utterance must have: none beside a semantic one."""
        return 0 if self.num_semantic_codes else 1

    @property
    def samples_per_token(self) -> int:
        return prod(self.upsampling_ratios)

    @property
    def inputs_per_token(self) -> int:
        """Mel frames, or samples of an encoder of waveforms, between two tokens."""
        if self.reads_waveforms:
            return self.samples_per_token
        return self.encoder_config.frames_per_token

    @property
    def frame_rate(self) -> float:
        """Tokens of each book per second."""
        return self.sampling_rate / self.samples_per_token

    @property
    def bitrate(self) -> float:
        """kbps of all books."""
        return self.frame_rate * sum(map(log2, self.book_sizes)) / 1000


def encoder_config_from(fields: dict[str, Any]) -> PreTrainedConfig:
    """
    A configuration from its fields, of a BestRQ also where the suite is not installed.

    Raises:
        ValueError: no `model_type`, or one that nothing knows.
    """
    if "model_type" not in fields:
        raise ValueError(f"encoder_config needs a model_type, one of {', '.join(ENCODERS)}; got {sorted(fields)}.")
    if fields["model_type"] == "best_rq":
        return BestRQConfig(**{name: value for name, value in fields.items() if name != "model_type"})
    return AutoConfig.for_model(**fields)


__all__ = ["HasrdConfig"]
