"""Configuration of SpeechLM."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .repository_source import without_source

NUM_END_TOKENS = 2  # <text_end> and <speech_end>
GPT2_ROWS = 50257
MAX_ANSWER_TOKENS = 150  # texts are at most so long in SLD's released code


@strict
class SpeechLMConfig(PreTrainedConfig):
    """
    A causal language model of text that reads speech units, too (SLD, section 3.1).

    "The original matrix E with t tokens [...] is expanded to a size of (t + s) x d": text keeps its `t` ids, `t` is
    `<text_end>`, `t + 1` is `<speech_end>`, and speech unit `u` is `t + 2 + u`. The defaults are GPT-2's shape and the
    paper's 6000 units: 56259 rows.

    Args:
        text_config: configuration of any causal language model of Transformers, or its fields. Its `vocab_size` is
            that of the extended model; `from_text_config` extends it.
        num_speech_units: s, how many speech units there are ("6000 subword units").

    Raises:
        StrictDataclassClassValidationError (of huggingface_hub): no units, or a vocabulary that has no room for text
            beside them.
    """

    model_type = "speech_lm"
    keys_to_ignore_at_inference = ["past_key_values"]
    sub_configs_defaults = {
        "text_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="gpt2",
            init_kwargs={"vocab_size": GPT2_ROWS + NUM_END_TOKENS + 6000},
        ),
    }

    text_config: dict | PreTrainedConfig | None = None
    num_speech_units: int = 6000

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**without_source(kwargs))
        self.tie_word_embeddings = self.text_config.tie_word_embeddings

    def validate_architecture(self):
        """Part of `@strict` validation: a vocabulary that holds text, ends and units."""
        if self.num_speech_units < 1:
            raise ValueError(f"num_speech_units must be at least 1; got {self.num_speech_units}.")
        if self.text_vocab_size < 1:
            raise ValueError(
                f"A vocabulary of {self.vocab_size} has no room for text beside {self.num_speech_units} speech units: "
                "text_config must be that of the extended model. Build one with SpeechLMConfig.from_text_config."
            )

    @classmethod
    def from_text_config(
        cls, text_config: PreTrainedConfig, num_speech_units: int, **overrides: Any
    ) -> "SpeechLMConfig":
        """
        For a text model with `text_config`, extended by end tokens and units. The argument is left as it is.

        Raises:
            ValueError: a text model without `max_position_embeddings` (BLOOM, MPT, Mamba): how long a sequence may be
                is asked in training, in `pipeline` and in evaluation.
        """
        if not hasattr(text_config, "max_position_embeddings"):
            raise ValueError(
                f"A {text_config.model_type} has no max_position_embeddings, so its context is unknown: take a text "
                "model with a position limit (GPT-2, Llama, Qwen ...)."
            )
        extended = type(text_config).from_dict(text_config.to_dict())
        extended.vocab_size += NUM_END_TOKENS + num_speech_units
        extended.name_or_path = ""  # which would be a folder of this machine
        return cls(text_config=extended, num_speech_units=num_speech_units, **overrides)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding: text, end tokens, speech units."""
        return self.text_config.vocab_size

    @property
    def text_vocab_size(self) -> int:
        """t: rows of the text model, spare ones included."""
        return self.vocab_size - NUM_END_TOKENS - self.num_speech_units

    @property
    def text_end_token_id(self) -> int:
        return self.text_vocab_size

    @property
    def speech_end_token_id(self) -> int:
        return self.text_vocab_size + 1

    @property
    def first_unit_token_id(self) -> int:
        return self.text_vocab_size + NUM_END_TOKENS

    @property
    def max_position_embeddings(self) -> int:
        """The context, in tokens: 1024 in GPT-2."""
        return self.text_config.max_position_embeddings

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The text model's: `generate` looks for the cache's shape there."""
        return self.text_config


__all__ = ["SpeechLMConfig"]
