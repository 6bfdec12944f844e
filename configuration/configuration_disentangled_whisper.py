"""Configuration of DisentangledWhisper."""

from dataclasses import field

from huggingface_hub.dataclasses import strict

from .whisper_tokenizer import WhisperTokenizerConfig

DOWNSAMPLINGS = ("mean", "conv", "conv_transformer")
UPSAMPLINGS = ("repeat", "conv")
BOTTLENECKS = ("quantizer", "adapter", "none")
CODEBOOK_DISTANCES = ("l2", "cosine")
UNKNOWN_NOISE = "unknown"
ATTENTION_HEADS = 4  # of the conv-transformer's blocks and the noise head's layers


@strict
class DisentangledWhisperConfig(WhisperTokenizerConfig):
    """
    A frozen Whisper with a vector quantizer between encoder and decoder (Explainable disentanglement, section II).

    The defaults are the paper's best model: whisper-medium, 25 Hz, 1024 codes of 64 dimensions, conv-transformer
    down and repetition up ("TR"). All fields of `WhisperConfig` keep their meaning; build one from a Whisper
    checkpoint with `from_whisper`.

    Args:
        bottleneck: what stands between encoder and decoder. "quantizer" is the method; "adapter" and "none" are the
            baselines of Table I: a trainable adapter without discretization, and the frozen Whisper itself.
        downsampling: 50 Hz to 25 Hz (section II-A): "mean" and "conv" (stride 2) are followed by an MLP block;
            "conv_transformer" is a convolutional stem and a strided transformer block after ActionFormer.
        upsampling: back to 50 Hz (section II-C): "repeat" or "conv" (transposed).
        normalize_latents: give every latent zero mean and unit variance over its dimensions, so that no loss can be
            lowered by shrinking or growing all of them. Not in the paper.
        codebook_size: N_CB. One more code stands for padding, outside the nearest-neighbour search.
        codebook_dim: width of the codes.
        codebook_decay: of the moving averages that are the codebook ("a codebook decay of 0.9"); 1 freezes it.
        codebook_distance: nearest neighbour in "l2" (the paper's text) or "cosine" (the code it builds on), where
            latents have unit length as codes do, so that the residue is between two directions.
        dead_code_threshold: codes whose moving average of uses falls below it start anew from a random frame. 0 is
            off: the paper has no word on it.
        stem_layers: masked convolutions below the strided block of "conv_transformer".
        refinement_layers: transformer layers after the up-sampling; the paper has a "transformer refinement block".
        adapter_blocks: blocks of "2 MLP layers with a GELU activation function between them" of the adapter.
        noise_labels: the noise classes seen in training; empty for no noise head. The head has one more, `unknown`.
        noise_head_dim: hidden width of the noise head.
        noise_head_layers: transformer layers in it ("optionally transformer-augmented").
        pooling_size: 2, the only ratio that the strided layers have.
        window_overlap: see `WhisperTokenizerConfig`.

    Raises:
        StrictDataclassClassValidationError (of huggingface_hub): an unknown choice, sizes below 1, a decay that is
            none, a negative number of layers, a width that the attention's heads do not divide, repeated noise labels
            or one that is called `unknown`, and what `WhisperTokenizerConfig` refuses.
    """

    model_type = "disentangled_whisper"

    vocab_size: int = 51865
    num_mel_bins: int = 80
    d_model: int = 1024
    encoder_layers: int = 24
    encoder_attention_heads: int = 16
    encoder_ffn_dim: int = 4096
    decoder_layers: int = 24
    decoder_attention_heads: int = 16
    decoder_ffn_dim: int = 4096
    decoder_start_token_id: int = 50258
    pad_token_id: int | None = 50257
    bos_token_id: int | None = 50257
    eos_token_id: int | list[int] | None = 50257

    bottleneck: str = "quantizer"
    downsampling: str = "conv_transformer"
    upsampling: str = "repeat"
    normalize_latents: bool = False
    codebook_size: int = 1024
    codebook_dim: int = 64
    codebook_decay: float = 0.9
    codebook_distance: str = "l2"
    dead_code_threshold: float = 0.0
    stem_layers: int = 2
    refinement_layers: int = 1
    adapter_blocks: int = 2
    noise_labels: list[str] = field(default_factory=list)
    noise_head_dim: int = 256
    noise_head_layers: int = 0

    def validate_architecture(self):
        """Part of `@strict` validation."""
        super().validate_architecture()
        choices = {
            "bottleneck": BOTTLENECKS,
            "downsampling": DOWNSAMPLINGS,
            "upsampling": UPSAMPLINGS,
            "codebook_distance": CODEBOOK_DISTANCES,
        }
        values = self.__dict__
        for name, known in choices.items():
            if values[name] not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {values[name]!r}.")
        for name in ("codebook_size", "codebook_dim", "adapter_blocks", "noise_head_dim"):
            if values[name] < 1:
                raise ValueError(f"{name} must be at least 1; got {values[name]}.")
        for name in ("dead_code_threshold", "stem_layers", "refinement_layers", "noise_head_layers"):
            if values[name] < 0:
                raise ValueError(f"{name} must not be negative; got {values[name]}.")
        if not 0 < self.codebook_decay <= 1:
            raise ValueError(f"codebook_decay must be above 0 and at most 1; got {self.codebook_decay}.")
        if self.pooling_size != 2:
            raise ValueError(f"pooling_size must be 2, the ratio of the strided layers; got {self.pooling_size}.")
        if len(set(self.noise_labels)) < len(self.noise_labels) or UNKNOWN_NOISE in self.noise_labels:
            raise ValueError(f"noise_labels must differ, and none be {UNKNOWN_NOISE!r}; got {self.noise_labels}.")
        self._validate_heads()

    def _validate_heads(self):
        """Attention inside the bottleneck, where there is any, divides its width among its heads."""
        is_quantized = self.bottleneck == "quantizer"
        widths = {"d_model": is_quantized and self.downsampling == "conv_transformer"}
        widths["noise_head_dim"] = is_quantized and self.noise_labels and self.noise_head_layers
        for name, is_divided in widths.items():
            if is_divided and self.__dict__[name] % ATTENTION_HEADS:
                raise ValueError(
                    f"{name} must be a multiple of the {ATTENTION_HEADS} attention heads; got {self.__dict__[name]}."
                )

    @property
    def padding_code(self) -> int:
        """The id that stands behind the end of a shorter utterance."""
        return self.codebook_size

    @property
    def noise_classes(self) -> list[str]:
        """The classes of the noise head in its order: `noise_labels` and `unknown`; none without a head."""
        return [*self.noise_labels, UNKNOWN_NOISE] if self.noise_labels else []
