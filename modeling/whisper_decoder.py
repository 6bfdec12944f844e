"""Whisper's decoder over masked speech states, and text generation for the models that end in it."""

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions, Seq2SeqLMOutput
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperDecoderLayer, shift_tokens_right

from .whisper_encoder import subsample_mask


class MaskedWhisperDecoderLayer(WhisperDecoderLayer):
    """A decoder layer whose cross-attention sees real speech frames only."""

    def forward(self, *args, cross_attention_bias: Tensor | None = None, **kwargs) -> Tensor:
        """`cross_attention_bias` replaces the mask that `WhisperDecoder` always leaves out."""
        return super().forward(*args, **{**kwargs, "encoder_attention_mask": cross_attention_bias})


class LengthAwareWhisperDecoder(WhisperDecoder):
    """`WhisperDecoder` with the same weights that ignores padded speech frames."""

    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList(MaskedWhisperDecoderLayer(config, i) for i in range(config.decoder_layers))
        self.post_init()

    def forward(
        self, input_ids: Tensor, encoder_hidden_states: Tensor, encoder_mask: Tensor, **kwargs
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """
        input_ids: `(batch, tokens)`; encoder_hidden_states: `(batch, frames, dim)`; encoder_mask: `(batch, frames)`,
        True on real frames.
        """
        queries = encoder_hidden_states[:, :1].expand(-1, input_ids.shape[1], -1)  # only its shape and device are read
        bias = create_bidirectional_mask(
            self.config, queries, encoder_mask, encoder_hidden_states=encoder_hidden_states
        )
        return super().forward(
            input_ids=input_ids, encoder_hidden_states=encoder_hidden_states, cross_attention_bias=bias, **kwargs
        )


class SpeechToTextGenerationMixin(GenerationMixin):
    """
    Decoding and `generate` for a model with `encode_speech(input_features, attention_mask) -> BaseModelOutput`, a
    `LengthAwareWhisperDecoder` that `get_decoder` finds, a head `proj_out`, and `mel_frames_per_state`.

    Whisper's own `generate` pads to 30 s and looks for timestamps; the plain one does neither.
    """

    mel_frames_per_state: int  # mel frames (10 ms each) per speech state that the decoder attends to

    def get_input_embeddings(self) -> nn.Module:
        return self.get_decoder().embed_tokens

    def set_input_embeddings(self, value: nn.Module):
        self.get_decoder().embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.proj_out

    def set_output_embeddings(self, value: nn.Module):
        self.proj_out = value

    def generate(self, input_features: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs):
        """
        Transcribe: ids `(batch, tokens)` from features `(batch, mel bins, mel frames)` and their mask.

        Everything else is `GenerationMixin.generate`'s: beams, sampling, `decoder_input_ids` in place of the prompt.

        Raises:
            ValueError: see `prompt_ids`.
        """
        prompt = self.prompt_ids()
        if len(prompt) > 1 and "decoder_input_ids" not in kwargs:
            batch = kwargs["encoder_outputs"].last_hidden_state if input_features is None else input_features
            kwargs["decoder_input_ids"] = torch.tensor([prompt], device=batch.device).expand(len(batch), -1)
        if "encoder_outputs" not in kwargs:
            with torch.no_grad():
                speech = self.encode_speech(input_features, attention_mask)
            kwargs["encoder_outputs"] = BaseModelOutput(last_hidden_state=speech.last_hidden_state)
        return super().generate(attention_mask=attention_mask, **kwargs)

    def prompt_ids(self) -> list[int]:
        """
        What the text starts with: the start token and, where the generation config names a `language` (its code, "en")
        as a multilingual Whisper's does, `<|en|><|transcribe|><|notimestamps|>`, as that Whisper was trained.

        Raises:
            ValueError: a language that the Whisper does not have, or one for a Whisper that has no languages.
        """
        config = self.generation_config
        start = [config.decoder_start_token_id or self.config.decoder_start_token_id]
        fields = config.to_dict()
        language = fields.get("language")
        if language is None:
            return start
        languages = fields.get("lang_to_id") or {}
        if f"<|{language}|>" not in languages:
            known = ", ".join(sorted(languages)) or "none: its generation config has no lang_to_id"
            raise ValueError(f"language {language!r} is not one of this Whisper's; it has {known}.")
        task = config.task_to_id[fields.get("task") or "transcribe"]
        return [*start, languages[f"<|{language}|>"], task, config.no_timestamps_token_id]

    def state_mask(self, states: Tensor, attention_mask: Tensor | None) -> Tensor:
        """`(batch, frames)`, True on real speech states `(batch, frames, dim)`; all real when there is no mask."""
        if attention_mask is None:
            return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        return subsample_mask(attention_mask.bool(), self.mel_frames_per_state)

    def decode(
        self,
        states: Tensor,
        attention_mask: Tensor | None,
        decoder_input_ids: Tensor | None,
        labels: Tensor | None,
        **cache,
    ) -> Seq2SeqLMOutput:
        """
        Logits `(batch, tokens, vocabulary)` of text over speech states, without a loss.

        states: `(batch, frames, dim)`; attention_mask: `(batch, mel frames)`, 1 on real ones; decoder_input_ids:
        `(batch, tokens)`, made from `labels` when None; cache: `past_key_values` and `use_cache`.
        """
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = self.shift_labels(labels)
        decoded = self.get_decoder()(decoder_input_ids, states, self.state_mask(states, attention_mask), **cache)
        return Seq2SeqLMOutput(
            logits=self.proj_out(decoded.last_hidden_state),
            past_key_values=decoded.past_key_values,
            encoder_last_hidden_state=states,
        )

    def shift_labels(self, labels: Tensor) -> Tensor:
        """
        Decoder inputs `(batch, tokens)` for `labels` (-100 on padding).

        Raises:
            ValueError: labels longer than the decoder's position table.
        """
        if labels.shape[1] > self.config.max_target_positions:
            raise ValueError(
                f"labels have {labels.shape[1]} tokens, the decoder has {self.config.max_target_positions} positions."
            )
        return shift_tokens_right(labels, self.config.pad_token_id, self.config.decoder_start_token_id)
