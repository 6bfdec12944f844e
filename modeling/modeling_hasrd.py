"""HASRD: a speech codec whose first book says what was said, and whose other books how it sounded."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import AutoConfig
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedAudioTokenizerBase

from ..configuration.configuration_hasrd import HasrdConfig
from .book_selection import PADDING_CODE, check_codes, check_num_samples, select_books, whole_number
from .checked_loading import CheckedLoadingMixin
from .chunked_coding import cut_stretches, decoder_context, decoding_chunks, encoding_windows
from .codec_layers import WaveformDecoder, reset_convolution
from .hasrd_outputs import HasrdDecoderOutput, HasrdEncoderOutput, HasrdOutput, QuantizedStates
from .layer_states import check_inputs, layer_states
from .pretrained_encoders import build_encoder, load_encoder_weights, weights_checksum
from .residual_quantization import (
    FactorizedQuantizer,
    ResidualQuantizer,
    SemanticQuantizer,
    check_depths,
    draw_depths,
    project,
)


class HasrdModel(CheckedLoadingMixin, PreTrainedAudioTokenizerBase):
    """
    The codec (HASRD, section 2.2): `encode` audio to tokens of several books, `decode` all or some of them to audio.

    One layer of a pretrained encoder, cut into clusters, is the semantic book. All its layers, mixed with learned
    weights and projected by W, less the semantic book (eq. 2), are quantized by the acoustic books. The sum of all
    books (eq. 3) goes through DAC's decoder.

    The encoder stays in evaluation mode: what it was pretrained with, masked spans and dropout, would be other tokens.
    It gets gradients unless its weights are frozen, as the paper has them. W starts from the identity, the layers'
    weights alike. Weights are not normalized as DAC's are. A model loads in float32 unless `dtype` asks for another;
    books are compared in float32 all the same.
    """

    config_class = HasrdConfig
    base_model_prefix = "model"
    input_modalities = ("audio",)
    _supports_sdpa = True

    def __init__(self, config: HasrdConfig):
        super().__init__(config)
        self.main_input_name = "input_values" if config.reads_waveforms else "input_features"
        self.encoder = build_encoder(config.encoder_config)
        size, num_states = config.hidden_size, config.encoder_config.num_hidden_layers + 1
        self.layer_weights = nn.Parameter(torch.empty(num_states))
        if config.num_semantic_codes:
            self.projection = nn.Linear(size, size, bias=False)
            self.semantic_quantizer = SemanticQuantizer(config.num_semantic_codes, size)
        self.acoustic_quantizer = ResidualQuantizer(
            config.num_acoustic_books, size, config.codebook_size, config.codebook_dim
        )
        self.decoder = WaveformDecoder(
            size, config.decoder_channels, config.upsampling_ratios, config.residual_dilations, config.separable
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        reset_convolution(module)
        if isinstance(module, FactorizedQuantizer):
            module.reset_parameters()
        elif isinstance(module, SemanticQuantizer):
            init.constant_(module.codebook, float("nan"))  # not fitted yet: `encode` refuses
        elif isinstance(module, HasrdModel):
            init.zeros_(module.layer_weights)
            if module.config.num_semantic_codes:
                init.eye_(module.projection.weight)

    @classmethod
    def from_encoder(cls, encoder: str, **fields) -> "HasrdModel":
        """
        A codec on a pretrained encoder, without a semantic book yet (see `set_semantic_codebook`), decoder untrained.

        Args:
            encoder: folder or Hub id of a BestRQ, HuBERT, wav2vec 2.0 or WavLM; fields: of `HasrdConfig`.

        Raises:
            ValueError: another kind of model, one that lacks weights, or fields that do not fit it.
        """
        encoder_config = AutoConfig.from_pretrained(encoder)
        encoder_config.name_or_path = ""  # which would be a folder of this machine
        model = cls(HasrdConfig(encoder_config=encoder_config, **fields))
        load_encoder_weights(model.encoder, encoder)
        return model

    def check_parts(self, name: str):
        """Raise ValueError for a semantic book that was fitted on another encoder or layer; `name` is the model's."""
        if self.has_fitted_codebook:
            self._check_fingerprint(self.config.semantic_fingerprint, f"the semantic book in {name}")

    def train(self, mode: bool = True) -> "HasrdModel":
        """Training mode for all but the encoder."""
        super().train(mode)
        self.encoder.eval()
        return self

    def _apply(self, fn: Callable, recurse: bool = True) -> nn.Module:
        """A model that is cast has other encoder weights, and a book that belonged to it belongs to them."""
        encoder = self.encoder
        is_cast = fn(torch.empty(0, dtype=encoder.dtype, device=encoder.device)).dtype != encoder.dtype
        fits = is_cast and self.has_fitted_codebook and self.config.semantic_fingerprint == self.encoder_fingerprint()
        super()._apply(fn, recurse)
        if fits:
            self.config.semantic_fingerprint = self.encoder_fingerprint()
        return self

    @property
    def has_fitted_codebook(self) -> bool:
        """Whether there is a semantic book with centroids in it."""
        if not self.config.num_semantic_codes or self.semantic_quantizer.codebook.is_meta:
            return False
        return self.semantic_quantizer.is_fitted

    def encoder_fingerprint(self) -> str:
        """Of the encoder's weights as float32 and the number of the semantic layer: `layer 8 of 0a1b2c3d`."""
        return f"layer {self.config.semantic_layer} of {weights_checksum(self.encoder)}"

    def _check_fingerprint(self, fingerprint: str | None, name: str):
        if fingerprint != (own := self.encoder_fingerprint()):
            raise ValueError(
                f"{name} was fitted on {fingerprint}, but this encoder is {own}: fit it again "
                "(recipes/fit_semantic_codebook.py) or use the encoder that it belongs to."
            )

    @torch.no_grad()
    def set_semantic_codebook(self, centroids: Tensor, fingerprint: str):
        """
        Take `(num_semantic_codes, dim)` as the semantic book.

        fingerprint: `encoder_fingerprint()` of the model whose states the centroids were fitted on.

        Raises:
            ValueError: there is no semantic book, another shape, NaN or infinity, another encoder or layer.
        """
        if not self.config.num_semantic_codes:
            raise ValueError("this codec has no semantic book: num_semantic_codes=0.")
        codebook = self.semantic_quantizer.codebook
        if centroids.shape != codebook.shape:
            raise ValueError(f"centroids must be {tuple(codebook.shape)}; got {tuple(centroids.shape)}.")
        if not bool(centroids.isfinite().all()):
            raise ValueError(f"{int((~centroids.isfinite()).any(dim=1).sum())} centroids have NaN or infinity.")
        self._check_fingerprint(fingerprint, "the semantic book")
        codebook.copy_(centroids)
        self.config.semantic_fingerprint = fingerprint

    def latents(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """
        The encoder's `hidden_states` `(batch, tokens, layers + 1, dim)`, zeros on padding, and their mask `(batch,
        tokens)`, True on real tokens, of which an utterance has as many as it has started.

        Args:
            input_features: `(batch, mel frames, mels)`, for a BestRQ.
            input_values: `(batch, samples)` at 16 kHz, for the other encoders.
            attention_mask: `(batch, mel frames)` or `(batch, samples)`, 1 on real ones; all real when None.

        Raises:
            ValueError: the other kind of input or both, wrong shapes, an utterance without a frame or sample, padding
                before an utterance's end, NaN or infinity in it.
        """
        inputs, attention_mask = check_inputs(self.config, input_features, attention_mask, input_values)
        return layer_states(self.encoder, inputs, attention_mask)

    def mix_layers(self, hidden_states: Tensor) -> Tensor:
        """H W of eq. 2 `(batch, tokens, dim)` float32, from `latents`' `(batch, tokens, layers + 1, dim)`."""
        with torch.autocast(hidden_states.device.type, enabled=False):
            mixed = torch.einsum("n,btnd->btd", self.layer_weights.float().softmax(dim=0), hidden_states.float())
            return project(mixed, self.projection) if self.config.num_semantic_codes else mixed

    def quantize(
        self, hidden_states: Tensor, mask: Tensor, depths: Tensor | None = None, num_books: int | None = None
    ) -> QuantizedStates:
        """
        Books of `latents`' states `(batch, tokens, layers + 1, dim)` under their mask `(batch, tokens)`.

        Gradients reach the states, W and the layers' weights through the acoustic books; the semantic vector has none.

        Args:
            depths: `(batch,)`, how many acoustic books each utterance uses, all when None.
            num_books: the first so many alone.

        Raises:
            ValueError: the semantic book has not been fitted, there are not so many, or depths that no utterance has.
        """
        config = self.config
        num_books = config.num_books if num_books is None else whole_number(num_books, "num_books")
        if not 1 <= num_books <= config.num_books:
            raise ValueError(f"num_books must be 1 to {config.num_books}; got {num_books}.")
        if depths is not None:
            check_depths(depths, len(mask), config.fewest_acoustic_books, config.num_acoustic_books)
        states, codes, losses = 0.0, [], hidden_states.new_zeros(2, len(mask), dtype=torch.float32)
        if config.num_semantic_codes:
            self._check_fitted()
            states, ids = self.semantic_quantizer(hidden_states[:, :, config.semantic_layer])
            codes.append(ids[:, None])
        num_acoustic = num_books - len(codes)
        if num_acoustic:  # else neither the layers' weights nor W are asked
            residual = self.mix_layers(hidden_states) - states  # eq. 2
            acoustic = self.acoustic_quantizer(residual, mask, depths, num_acoustic)
            states = states + acoustic.quantized  # eq. 3
            codes.append(acoustic.codes)
            losses = acoustic.commitment_loss, acoustic.codebook_loss
        codes = torch.cat(codes, dim=1).masked_fill(~mask[:, None], PADDING_CODE)
        return QuantizedStates(states.masked_fill(~mask[..., None], 0.0), codes, *losses)

    def _check_fitted(self):
        if not self.semantic_quantizer.is_fitted:
            raise ValueError(
                "the semantic book has no centroids yet: fit them (recipes/fit_semantic_codebook.py) and "
                "`set_semantic_codebook`."
            )

    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        depths: Tensor | None = None,
        first_tokens: Tensor | None = None,
        num_tokens: int | None = None,
    ) -> HasrdOutput:
        """
        Encode and decode with gradients, in one pass; see `latents` for arguments and errors, `encode` for any length.

        Args:
            depths: `(batch,)`, how many acoustic books each utterance uses: any number, 1 at least without a semantic
                book. When None, all of them do; in training mode `quantizer_dropout` shortens some, and never drops
                the semantic book.
            first_tokens: `(batch,)`, decode so many tokens alone, `num_tokens`, from here in each utterance: the
                decoder sees little and costs most, while the encoder hears it all. All are decoded when None.
        """
        hidden_states, mask = self.latents(input_features, attention_mask, input_values)
        config = self.config
        if depths is None and self.training and config.quantizer_dropout and config.num_acoustic_books:
            fewest, most = config.fewest_acoustic_books, config.num_acoustic_books
            depths = draw_depths(len(mask), config.quantizer_dropout, fewest, most, mask.device)
        quantized = self.quantize(hidden_states, mask, depths)
        decoded = quantized.states, mask
        if first_tokens is not None:
            decoded = cut_stretches(*decoded, first_tokens, num_tokens)
        return HasrdOutput(
            audio_values=self._to_samples(*decoded),
            audio_codes=quantized.codes,
            attention_mask=mask,
            commitment_loss=quantized.commitment_loss,
            codebook_loss=quantized.codebook_loss,
        )

    def _to_samples(self, states: Tensor, mask: Tensor) -> Tensor:
        """Samples float32 `(batch, samples)` of quantized states `(batch, tokens, dim)`, zeros on padding."""
        dtype = self.decoder.output_convolution.weight.dtype
        return self.decoder(states.to(dtype), None if bool(mask.all()) else mask).float()

    @torch.no_grad()
    def encode(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        num_books: int | None = None,
    ) -> HasrdEncoderOutput:
        """
        Tokens of audio of any length; see `latents` for arguments and errors.

        Audio of more than `max_source_tokens` is read in overlapping windows, laid over each utterance by itself;
        there are as many tokens as one pass would give. num_books: the first so many alone, the semantic one counted.
        """
        inputs, attention_mask = check_inputs(self.config, input_features, attention_mask, input_values)
        per_token, longest = self.config.inputs_per_token, self.config.max_source_tokens
        if inputs.shape[1] <= longest * per_token:
            codes, mask = self._encode_window(inputs, attention_mask, num_books)
            return HasrdEncoderOutput(audio_codes=codes, attention_mask=mask)
        rows = []
        for row, length in enumerate(attention_mask.sum(dim=1).tolist()):
            pieces = []
            for window in encoding_windows(-(-length // per_token), longest):
                cut = slice(window.start * per_token, min(window.end * per_token, length))
                codes, _ = self._encode_window(inputs[row, None, cut], attention_mask[row, None, cut], num_books)
                pieces.append(codes[0, :, window.kept].T)
            rows.append(torch.cat(pieces))
        codes = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING_CODE).transpose(1, 2)
        return HasrdEncoderOutput(audio_codes=codes, attention_mask=codes[:, 0] != PADDING_CODE)

    def _encode_window(self, inputs: Tensor, attention_mask: Tensor, num_books: int | None) -> tuple[Tensor, Tensor]:
        hidden_states, mask = layer_states(self.encoder, inputs, attention_mask)
        return self.quantize(hidden_states, mask, num_books=num_books).codes, mask

    @torch.no_grad()
    def decode(
        self,
        audio_codes: Tensor,
        attention_mask: Tensor | None = None,
        books: str | int | Sequence[int] | None = None,
        num_samples: int | Sequence[int] | Tensor | None = None,
        tokens_per_chunk: int = 250,
    ) -> HasrdDecoderOutput:
        """
        Audio of tokens, from all books or some of them, of any length.

        Args:
            audio_codes: `(batch, books, tokens)`, of all books or the first few, the semantic one first.
            attention_mask: `(batch, tokens)`, 1 on real tokens; when None, all but -1 are.
            books: which to listen to: "all" (or None) that are given, "semantic", "acoustic", the first so many, or a
                list of their numbers from 0.
            num_samples: length to cut the audio to, one for all utterances or `(batch,)`: a recording ends within a
                token. When None, tokens are decoded to their ends.
            tokens_per_chunk: how many are decoded at once; bounds the memory. The audio is that of one pass.

        Raises:
            ValueError: other shapes or types, -1 or padding before an utterance's end, codes out of a book's range,
                books that were not given, or none, more samples than the tokens have, `tokens_per_chunk` below 1.
        """
        audio_codes, mask = check_codes(audio_codes, attention_mask, self.config.book_sizes)
        books = select_books(books, audio_codes.shape[1], self.config)
        num_samples = check_num_samples(num_samples, mask, self.config.samples_per_token)
        if whole_number(tokens_per_chunk, "tokens_per_chunk") < 1:
            raise ValueError(f"tokens_per_chunk must be at least 1; got {tokens_per_chunk}.")
        if self.config.num_semantic_codes and 0 in books:
            self._check_fitted()
        context = decoder_context(self.config.upsampling_ratios, self.config.residual_dilations)
        per_token, pieces = self.config.samples_per_token, []
        for chunk in decoding_chunks(mask.shape[1], tokens_per_chunk, context):
            cut = slice(chunk.start, chunk.end)
            samples = self._to_samples(self.embed(audio_codes[..., cut], mask[:, cut], books), mask[:, cut])
            pieces.append(samples[:, chunk.kept.start * per_token : chunk.kept.stop * per_token])
        audio = torch.cat(pieces, dim=1)[:, : int(num_samples.max())]
        behind = torch.arange(audio.shape[1], device=audio.device) >= num_samples[:, None]
        return HasrdDecoderOutput(audio_values=audio.masked_fill(behind, 0.0))

    def embed(self, audio_codes: Tensor, mask: Tensor, books: list[int]) -> Tensor:
        """Sum of some books' vectors `(batch, tokens, dim)` float32, zeros on padding."""
        codes = audio_codes.masked_fill(~mask[:, None], 0)
        num_semantic = 1 if self.config.num_semantic_codes else 0
        acoustic = [book for book in books if book >= num_semantic]
        states = torch.zeros(*mask.shape, self.config.hidden_size, device=codes.device)
        if num_semantic and 0 in books:
            states = states + self.semantic_quantizer.codebook[codes[:, 0]]
        if acoustic:
            vectors = self.acoustic_quantizer.embed(codes[:, acoustic], [book - num_semantic for book in acoustic])
            states = states + vectors
        return states.masked_fill(~mask[..., None], 0.0)


__all__ = ["HasrdModel"]
