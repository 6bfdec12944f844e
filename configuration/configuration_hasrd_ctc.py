"""Configuration of the recognizer that HASRD's representations are measured with."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .configuration_hasrd import ENCODERS, HasrdConfig, encoder_config_from
from .repository_source import without_source

OF_BOOKS = ("semantic", "acoustic", "combined", "books")
REPRESENTATIONS = ("features", "layer", "layers", *OF_BOOKS)


@strict
class HasrdCTCConfig(PreTrainedConfig):
    """
    A frozen HASRD, or an encoder alone, and a small recognizer of one of its representations.

    The defaults are the paper's: "a 2-layer BLSTM with a hidden dimensionality of 1024 as our ASR encoder", "y is the
    character transcript" (section 3, "Evaluation"), of the semantic book of HASRD (BestRQ+).

    Args:
        speech_config: configuration of what is measured, a `HasrdConfig` or an encoder of `ENCODERS`, or its fields
            with `model_type`. By default a HASRD of the paper's size.
        representation: what the recognizer reads at each token. "features" are the mel frames of a token, one after
            another; "layer" is one entry of the encoder's `hidden_states`, "layers" the sum of all with learned
            weights (Fig. 2, "ASR"). Of a HASRD: "semantic" is the k-means book's vectors, "acoustic" the sum of the
            other books', "combined" of all (eq. 3), "books" of those in `books`.
        layer: of "layer", 0 being what goes into the first layer; books: of "books", numbered from 0, the semantic one
            first.
        hidden_size: of the BLSTM in each direction; num_hidden_layers: of the BLSTM; dropout: between them.
        vocab_size: the tokenizer's; by default LibriSpeech's 28 characters and three special tokens.
        pad_token_id: CTC's blank, and what `generate` writes behind the end of a shorter text.

    Raises:
        StrictDataclassClassValidationError (of huggingface_hub): an unknown representation, or one that the model does
            not have, a layer or books that do not exist or belong to another representation, sizes below 1.
    """

    model_type = "hasrd_ctc"
    sub_configs = {"speech_config": AutoConfig}

    speech_config: dict[str, Any] | PreTrainedConfig | None = None
    representation: str = "semantic"
    layer: int | None = None
    books: list[int] | tuple[int, ...] | None = None
    hidden_size: int = 1024
    num_hidden_layers: int = 2
    dropout: float = 0.0
    vocab_size: int = 31
    pad_token_id: int = 0

    def __post_init__(self, **kwargs: Any):
        if not isinstance(self.speech_config, PreTrainedConfig):
            self.speech_config = speech_config_from(self.speech_config or {"model_type": "hasrd"})
        super().__post_init__(**without_source(kwargs))

    def validate_architecture(self):
        """Part of `@strict` validation: a representation that there is."""
        if self.speech_config.model_type not in ("hasrd", *ENCODERS):
            raise ValueError(
                f"a HASRD is measured, or one of {', '.join(ENCODERS)}; got "
                f"model_type={self.speech_config.model_type!r}."
            )
        if self.representation not in REPRESENTATIONS:
            raise ValueError(
                f"representation must be one of {', '.join(REPRESENTATIONS)}; got {self.representation!r}."
            )
        if self.representation == "features" and self.reads_waveforms:
            raise ValueError(f"a {self.encoder_config.model_type} reads samples: it has no features.")
        for name, owner in {"layer": "layer", "books": "books"}.items():
            if (getattr(self, name) is None) == (self.representation == owner):
                raise ValueError(
                    f"{name} belongs to representation={owner!r}, which needs it; got {getattr(self, name)} and "
                    f"{self.representation!r}."
                )
        last = self.encoder_config.num_hidden_layers
        if self.layer is not None and not 0 <= self.layer <= last:
            raise ValueError(f"this {self.encoder_config.model_type} has layers 0 to {last}; got layer={self.layer}.")
        if self.reads_books:
            self._validate_books()
        for name in ("hidden_size", "num_hidden_layers", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(f"pad_token_id must be one of vocab_size={self.vocab_size} ids; got {self.pad_token_id}.")

    def _validate_books(self):
        if not self.is_codec:
            raise ValueError(
                f"{self.representation!r} are books of a HASRD, but a {self.speech_config.model_type} has none."
            )
        codec, books = self.speech_config, self.book_numbers
        if self.representation == "semantic" and not codec.num_semantic_codes:
            raise ValueError("this HASRD has no semantic book: num_semantic_codes=0.")
        if not books or len(set(books)) < len(books) or not all(0 <= book < codec.num_books for book in books):
            raise ValueError(
                f"{self.representation!r} must be some of {codec.num_books} books, numbered from 0, each once; got "
                f"{books}."
            )

    @property
    def is_codec(self) -> bool:
        """Whether a whole HASRD is measured, not an encoder alone."""
        return self.speech_config.model_type == "hasrd"

    @property
    def encoder_config(self) -> PreTrainedConfig:
        """Of the encoder alone."""
        return self.speech_config.encoder_config if self.is_codec else self.speech_config

    @property
    def reads_waveforms(self) -> bool:
        """Whether the encoder takes `input_values`, samples at 16 kHz; else it takes `input_features`, log-mel."""
        return self.encoder_config.model_type != "best_rq"

    @property
    def reads_books(self) -> bool:
        """Whether the representation is quantized."""
        return self.representation in OF_BOOKS

    @property
    def book_numbers(self) -> list[int]:
        """Which books' vectors are added up, the semantic one being 0 where there is one."""
        codec = self.speech_config
        first_acoustic = 1 if codec.num_semantic_codes else 0
        return {
            "semantic": [0],
            "acoustic": [*range(first_acoustic, codec.num_books)],
            "combined": [*range(codec.num_books)],
            "books": [*(self.books or [])],
        }[self.representation]

    @property
    def representation_size(self) -> int:
        """Of what the recognizer reads at each token."""
        if self.representation == "features":
            return self.encoder_config.num_mel_bins * self.encoder_config.frames_per_token
        return self.encoder_config.hidden_size


def speech_config_from(fields: dict[str, Any]) -> PreTrainedConfig:
    """
    A configuration from its fields, of the suite's own models also where the suite is not installed.

    Raises:
        ValueError: no `model_type`, or one that nothing knows.
    """
    if fields.get("model_type") == "hasrd":
        return HasrdConfig(**{name: value for name, value in fields.items() if name != "model_type"})
    return encoder_config_from(fields)


__all__ = ["HasrdCTCConfig"]
