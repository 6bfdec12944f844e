"""SpeechLM: any causal language model of text, with rows for speech units."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Cache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..configuration.configuration_speech_lm import MAX_ANSWER_TOKENS, SpeechLMConfig

LOADING_OPTIONS = (  # those that concern the configuration, too
    *("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token"),
    *("trust_remote_code", "code_revision"),
)


class SpeechLMForCausalLM(PreTrainedModel, GenerationMixin):
    """
    Decoder-only recognition over speech units (SLD, section 3.1).

    Speech units, `<speech_end>`, text and `<text_end>` are one sequence of one causal language model; see
    `SpeechLMConfig` for the ids. `from_text_model` starts from any model of `AutoModelForCausalLM`: text rows keep
    their weights, end tokens and units get new ones, tied or untied as the text model has it.

    `generate` takes left-padded `input_ids` and `attention_mask`, as `SpeechLMProcessor` makes them, and writes text
    up to `<text_end>`.
    """

    config_class = SpeechLMConfig
    base_model_prefix = "language_model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _tied_weights_keys = {}  # none but the text model's own, which PEFT looks for only where there is a dict

    def __init__(self, config: SpeechLMConfig):
        super().__init__(config)
        # else it would have the text model's dtype, which its configuration remembers
        self.language_model = AutoModelForCausalLM.from_config(config.text_config, dtype=torch.get_default_dtype())
        self.post_init()

    @classmethod
    def from_text_model(
        cls, text_model: str, num_speech_units: int, from_scratch: bool = False, **kwargs: Any
    ) -> "SpeechLMForCausalLM":
        """
        Extend a text model: new rows are drawn as the text model draws its own.

        Args:
            text_model: folder or Hub id of a causal language model.
            from_scratch: random weights of its shape, not its own; such a folder needs no weights.
            kwargs: passed on to `AutoModelForCausalLM.from_pretrained` (`revision`, `token`, `dtype`,
                `attn_implementation`, ...). From scratch, weights are float32 unless `dtype` is given.

        Raises:
            ValueError: the folder is a SpeechLM already.
        """
        loading = {name: kwargs[name] for name in LOADING_OPTIONS if name in kwargs}
        text_config = AutoConfig.from_pretrained(text_model, **loading)
        if text_config.model_type == SpeechLMConfig.model_type:
            raise ValueError(
                f"{text_model} is a SpeechLM already: load it with AutoModelForCausalLM.from_pretrained, or pass the "
                "text model that it was made from."
            )
        config = SpeechLMConfig.from_text_config(text_config, num_speech_units)
        if from_scratch:
            model = cls._from_config(config, **{name: kwargs[name] for name in kwargs.keys() - loading.keys()})
        else:
            with torch.device("meta"):  # not a second copy of large weights
                model = cls(config)
            model.language_model = AutoModelForCausalLM.from_pretrained(text_model, **kwargs)
            model.language_model.resize_token_embeddings(model.config.vocab_size, mean_resizing=False)
            model.language_model.config.name_or_path = ""  # which would be a folder of this machine
            model.config.text_config = model.language_model.config
        model.generation_config = model.text_generation_config(text_config)
        return model

    def text_generation_config(self, text_config: PreTrainedConfig) -> GenerationConfig:
        """Greedy search up to `<text_end>`, or `MAX_ANSWER_TOKENS`: "we use greedy search for ASR decoding"."""
        ends = text_config.eos_token_id
        last = ends[0] if isinstance(ends, list) else ends
        padding = text_config.pad_token_id if text_config.pad_token_id is not None else last
        return GenerationConfig(
            eos_token_id=self.config.text_end_token_id,
            pad_token_id=self.config.text_end_token_id if padding is None else padding,
            max_new_tokens=min(MAX_ANSWER_TOKENS, self.config.max_position_embeddings // 2),
            do_sample=False,
            num_beams=1,
        )

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module):
        self.language_model.set_output_embeddings(new_embeddings)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """
        The text model's own forward: arguments and results are its. Positions count real tokens, so that padding on
        the left moves none; with a cache they must be given, as `generate` does.

        input_ids, attention_mask, position_ids: `(batch, tokens)`; labels: `(batch, tokens)`, -100 where no loss is
        taken ("Loss Masking" has it on speech). Returns `logits` `(batch, tokens, vocabulary)`.
        """
        if position_ids is None and attention_mask is not None and past_key_values is None:
            position_ids = (attention_mask.long().cumsum(dim=-1) - 1).clamp_min(0)
        return self.language_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """
        As Transformers' own.

        Raises:
            ValueError: the sequence has grown past the context.
        """
        width = input_ids.shape[1] if attention_mask is None else attention_mask.shape[1]
        if width > self.config.max_position_embeddings:
            raise ValueError(
                f"The sequence has come to {width} tokens; the model's context holds "
                f"{self.config.max_position_embeddings}. Pass shorter audio or a smaller max_new_tokens; the pipeline "
                "cuts long audio into windows."
            )
        return super().prepare_inputs_for_generation(input_ids, *args, attention_mask=attention_mask, **kwargs)


__all__ = ["SpeechLMForCausalLM"]
