"""The k-means tokenizer: each frame of a speech encoder's layer becomes the id of the nearest centroid."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioTokenization,
    PreTrainedConfig,
    PreTrainedModel,
    WhisperConfig,
)
from transformers import initialization as init
from transformers.utils import ModelOutput

from ..configuration.configuration_kmeans_tokenizer import KMeansTokenizerConfig, check_layer
from .vector_quantization import nearest_codes
from .waveform_encoding import check_waveforms, encode_waveforms, waveform_frame_mask
from .whisper_encoder import LengthAwareWhisperEncoder
from .windowed_encoding import WindowedEncodingMixin

PADDING_CODE = -1  # what `encode` writes behind the end of a shorter utterance; no token has this id
WHISPER_TOKENIZERS = ("disentangled_whisper", "stable_token")  # of the suite, with a Whisper's encoder inside


@dataclass
class KMeansTokenizerOutput(ModelOutput):
    """
    Args:
        audio_codes: `(batch, frames)` int64 in `[0, codebook_size)`; -1 on padding.
        attention_mask: `(batch, frames)` boolean, True on real tokens.
    """

    audio_codes: torch.LongTensor | None = None
    attention_mask: torch.BoolTensor | None = None


class KMeansTokenizerModel(WindowedEncodingMixin, PreTrainedModel):
    """
    A frozen speech encoder up to one layer, and the centroids of its states (SLD, section 4.1).

    The states are `hidden_states[layer]` as Transformers counts them: 0 goes into the first layer, the others come
    out of one. What comes out of the last layer of a *-large HuBERT or WavLM has not yet passed their final norm (nor
    has `output_layer` of fairseq); of a Whisper it has. Layers above are not built, not kept and cost nothing.

    Nothing here is trained by gradients: the model stays in evaluation mode. Centroids are loaded as float32 in any
    dtype, and compared in float32.
    """

    config_class = KMeansTokenizerConfig
    base_model_prefix = "model"
    input_modalities = ("audio",)
    _supports_flash_attn = True
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = {"centroids"}
    token_outputs = ("audio_codes", "attention_mask")
    padding_code = PADDING_CODE

    def __init__(self, config: KMeansTokenizerConfig):
        super().__init__(config)
        encoder_config = config.encoder_config
        if config.reads_waveforms:
            self.main_input_name = "input_values"
            # else it would have the checkpoint's dtype, which the configuration remembers
            self.encoder = AutoModel.from_config(encoder_config, dtype=torch.get_default_dtype())
            del self.encoder.encoder.layers[max(config.layer, 1) :]  # what goes into a layer is read off that layer
        else:
            self.main_input_name = "input_features"
            self.encoder = LengthAwareWhisperEncoder(encoder_config)
            del self.encoder.layers[config.layer :]
            if config.layer < encoder_config.encoder_layers:
                self.encoder.layer_norm = nn.Identity()
        self.centroids = nn.Parameter(torch.empty(config.codebook_size, encoder_config.hidden_size))
        self.requires_grad_(False)
        self.post_init()
        self.eval()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, KMeansTokenizerModel):
            init.constant_(module.centroids, float("nan"))  # not fitted yet: `encode` refuses

    @classmethod
    def from_encoder(cls, encoder: str, layer: int, codebook_size: int) -> "KMeansTokenizerModel":
        """
        A tokenizer on a pretrained encoder, without centroids yet: see `set_centroids`.

        Args:
            encoder: folder or Hub id of a Whisper, HuBERT, wav2vec 2.0 or WavLM, or of a StableToken or
                DisentangledWhisper, whose Whisper encoder is taken.

        Raises:
            ValueError: another kind of model, or a layer that it does not have.
        """
        source_config = AutoConfig.from_pretrained(encoder)
        encoder_config = plain_encoder_config(source_config)
        encoder_config.name_or_path = ""  # which would be a folder of this machine
        check_layer(encoder_config, layer)
        model = cls(KMeansTokenizerConfig(encoder_config=encoder_config, layer=layer, codebook_size=codebook_size))
        auto_class = AutoModelForAudioTokenization if source_config.model_type in WHISPER_TOKENIZERS else AutoModel
        source = auto_class.from_pretrained(encoder, dtype=torch.float32)
        source = source if model.config.reads_waveforms else source.encoder
        missing = model.encoder.load_state_dict(source.state_dict(), strict=False).missing_keys
        if missing:
            raise ValueError(
                f"layer {layer} of {encoder} has no weights for {', '.join(sorted(missing))}: the encoder of a "
                "StableToken ends at its quantizer. Choose a lower layer."
            )
        return model

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """
        `PreTrainedModel.from_pretrained` that takes no half of a tokenizer.

        Raises:
            ValueError: centroids, or other weights, are not in the folder.
        """
        model, report = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        if report["missing_keys"]:
            raise ValueError(
                f"{args[0] if args else model.name_or_path} lacks weights of a k-means tokenizer: "
                f"{', '.join(sorted(report['missing_keys']))}. Fit it again (recipes/fit_speech_units.py), or fetch "
                "the whole folder."
            )
        model.requires_grad_(False)  # loading makes new parameters
        return (model, report) if output_loading_info else model

    def train(self, mode: bool = True) -> "KMeansTokenizerModel":
        """Evaluation mode whatever is asked for: tokens must not meet dropout."""
        return super().train(False)

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    @torch.no_grad()
    def set_centroids(self, centroids: Tensor):
        """
        Take `(codebook_size, dim)` as what tokens stand for.

        Raises:
            ValueError: another shape, NaN or infinity.
        """
        if centroids.shape != self.centroids.shape:
            raise ValueError(f"centroids must be {tuple(self.centroids.shape)}; got {tuple(centroids.shape)}.")
        if not bool(centroids.isfinite().all()):
            raise ValueError(f"{int((~centroids.isfinite()).any(dim=1).sum())} centroids have NaN or infinity.")
        self.centroids.copy_(centroids)

    @torch.no_grad()
    def features(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """
        What is clustered: `hidden_states[layer]` `(batch, frames, dim)` and its mask `(batch, frames)`, True on real
        frames; behind them the values mean nothing. An utterance's states do not depend on its batch.

        Args:
            input_features: `(batch, mel bins, mel frames)`, 10 ms per frame, for a Whisper.
            input_values: `(batch, samples)` at 16 kHz, for the other encoders.
            attention_mask: `(batch, mel frames)` or `(batch, samples)`, 1 on real ones; all real when None.

        Raises:
            ValueError: the other kind of input, wrong shapes, audio longer than a Whisper's position table, and
                utterances too short for a single frame.
        """
        given = input_values if self.config.reads_waveforms else input_features
        if given is None:
            raise ValueError(
                f"a {self.config.encoder_config.model_type} encoder takes {self.main_input_name}: use the feature "
                "extractor saved with this model."
            )
        if self.config.reads_waveforms:
            return self._waveform_features(input_values, attention_mask)
        states, mask = self.encoder.embed(input_features, attention_mask)
        return self.encoder.layer_norm(self.encoder.run_layers(self.encoder.layers, states, mask)), mask

    def _waveform_features(self, input_values: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """`features` of samples `(batch, samples)`."""
        attention_mask = check_waveforms(input_values, attention_mask)
        mask = waveform_frame_mask(self.encoder, attention_mask)
        states = encode_waveforms(
            self.encoder, input_values, attention_mask, lambda samples, mask, _: self._hidden_states(samples, mask)
        )
        return states, mask[:, : states.shape[1]]

    def _hidden_states(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        layer = self.config.layer
        return self.encoder(input_values, attention_mask, output_hidden_states=[layer]).hidden_states[layer]

    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        **kwargs,
    ) -> KMeansTokenizerOutput:
        """
        Tokens of audio that fits a Whisper's position table; see `features` for arguments and errors, and `encode`
        for any length.

        Raises:
            ValueError: there are no centroids yet.
        """
        if bool(self.centroids[0, 0].isnan()):
            raise ValueError("this tokenizer has no centroids yet: fit them (recipes/fit_speech_units.py).")
        states, mask = self.features(input_features, attention_mask, input_values)
        codes = nearest_codes(states, self.centroids).masked_fill(~mask, PADDING_CODE)
        return KMeansTokenizerOutput(audio_codes=codes, attention_mask=mask)

    @torch.no_grad()
    def encode(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        windows_per_batch: int = 8,
    ) -> KMeansTokenizerOutput:
        """Tokens of audio of any length: a Whisper sees overlapping windows, other encoders all of it at once."""
        if self.config.reads_waveforms or input_features is None:
            return self(input_features, attention_mask, input_values)
        return super().encode(input_features, attention_mask, windows_per_batch)


def plain_encoder_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of an encoder that Transformers knows: that of a tokenizer's Whisper, any other as it is."""
    if config.model_type not in WHISPER_TOKENIZERS:
        return config
    names = WhisperConfig().to_dict().keys() - {"model_type"}
    return WhisperConfig(**{name: value for name, value in config.to_dict().items() if name in names})


__all__ = ["KMeansTokenizerModel"]
