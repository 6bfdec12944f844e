"""What the configurations of all tokenizers inside a Whisper share."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import WhisperConfig

from .repository_source import without_source


@strict
class WhisperTokenizerConfig(WhisperConfig):
    """
    A Whisper whose encoder states are pooled to tokens. All fields of `WhisperConfig` keep their meaning.

    Args:
        pooling_size: encoder frames (50 Hz) per token; 2 gives 25 Hz. Must divide the position table, so that a full
            window holds whole tokens.
        window_overlap: tokens shared by neighbouring windows when audio is longer than the position table.

    Raises:
        StrictDataclassClassValidationError (of huggingface_hub): a pooling that does not divide the position table,
            overlap not smaller than a window.
    """

    pooling_size: int = 2
    window_overlap: int = 250

    def __post_init__(self, **kwargs):
        super().__post_init__(**without_source(kwargs))

    def validate_architecture(self):
        """Part of `@strict` validation: refuses token rates and windows that do not fit the encoder."""
        super().validate_architecture()
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
    def max_source_tokens(self) -> int:
        """Tokens in one window of the encoder: the position table's length at the token rate."""
        return self.max_source_positions // self.pooling_size

    @property
    def mel_frames_per_token(self) -> int:
        """Mel frames (10 ms each) per token: convolution stride times pooling."""
        return 2 * self.pooling_size

    @classmethod
    def from_whisper(cls, whisper_config: WhisperConfig, **overrides: Any) -> "WhisperTokenizerConfig":
        """
        Take the shape of a Whisper model; unless told otherwise, let neighbouring windows share a third.

        Raises:
            ValueError: the configuration is not a Whisper's.
        """
        if whisper_config.model_type != "whisper":
            raise ValueError(
                f"{cls.__name__} starts from a Whisper checkpoint; got model_type={whisper_config.model_type!r}."
            )
        fields = whisper_config.to_dict()
        for derived in ("model_type", "architectures", "transformers_version", "dtype", "torch_dtype"):
            fields.pop(derived, None)
        fields.update(overrides)
        pooling_size = max(fields.get("pooling_size", cls.pooling_size), 1)  # below 1 is refused by the validation
        fields.setdefault("window_overlap", fields["max_source_positions"] // pooling_size // 3)
        return cls(**fields)
