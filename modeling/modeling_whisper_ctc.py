"""A Whisper trained with an auxiliary CTC branch, for bases small enough to train from scratch."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.models.whisper.modeling_whisper import WhisperModel, WhisperPreTrainedModel

from .whisper_decoder import LengthAwareWhisperDecoder, SpeechToTextGenerationMixin
from .whisper_encoder import LengthAwareWhisperEncoder, masked_mean_pool


@dataclass
class WhisperCTCOutput(Seq2SeqLMOutput):
    """`ctc_logits`: `(batch, frames, vocabulary)` at 25 Hz; `frame_mask`: `(batch, frames)`, True on real frames."""

    ctc_logits: torch.FloatTensor | None = None
    frame_mask: torch.BoolTensor | None = None


class WhisperForJointCTC(SpeechToTextGenerationMixin, WhisperPreTrainedModel):
    """
    Whisper on real lengths with a CTC head on its encoder (hybrid CTC/attention, Watanabe et al., 2017).

    Attention alone does not learn to align from minutes of speech; with CTC pulling the encoder it does. The weights
    other than `ctc_head` are a plain Whisper's: `save_whisper` writes them as one.
    """

    _tied_weights_keys = {"proj_out.weight": "model.decoder.embed_tokens.weight"}
    mel_frames_per_state = 2

    def __init__(self, config):
        super().__init__(config)
        self.model = WhisperModel(config)
        self.model.encoder = LengthAwareWhisperEncoder(config)
        self.model.decoder = LengthAwareWhisperDecoder(config)
        self.proj_out = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.ctc_head = nn.Linear(config.d_model, config.vocab_size)
        self.post_init()

    def encode_speech(self, input_features: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutput:
        """States `(batch, frames, dim)` at 50 Hz of features `(batch, mel bins, mel frames)`."""
        return self.model.encoder(input_features, attention_mask)

    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        past_key_values=None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> WhisperCTCOutput:
        """Arguments as in `StableTokenForConditionalGeneration.forward`, without the noisy view and without a loss."""
        if encoder_outputs is None:
            encoder_outputs = self.encode_speech(input_features, attention_mask)
        states = encoder_outputs.last_hidden_state
        cache = {"past_key_values": past_key_values, "use_cache": use_cache}
        output = WhisperCTCOutput(**self.decode(states, attention_mask, decoder_input_ids, labels, **cache))
        if labels is not None:
            pooled, output.frame_mask = masked_mean_pool(states, self.state_mask(states, attention_mask), 2)
            output.ctc_logits = self.ctc_head(pooled)
        return output

    def save_whisper(self, folder: str):
        """Write everything but the CTC head as a plain `WhisperForConditionalGeneration`."""
        whisper = WhisperForConditionalGeneration(self.config)
        weights = {name: value for name, value in self.state_dict().items() if not name.startswith("ctc_head")}
        whisper.load_state_dict(weights)
        whisper.generation_config = self.generation_config
        whisper.save_pretrained(folder)
