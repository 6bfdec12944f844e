"""A small recognizer on a frozen representation of speech: how much of what was said is in it, and how easily read."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from ..configuration.configuration_hasrd_ctc import HasrdCTCConfig
from .bidirectional_lstm import BidirectionalLSTM
from .checked_loading import CheckedLoadingMixin
from .layer_states import check_inputs, layer_states
from .mel_frames import stack_frames
from .modeling_hasrd import HasrdModel
from .pretrained_encoders import build_encoder, load_encoder_weights


@dataclass
class HasrdCTCOutput(ModelOutput):
    """
    Args:
        loss: CTC in nats per label, when labels are given.
        logits: `(batch, tokens, vocabulary)`.
        attention_mask: `(batch, tokens)` boolean, True on real tokens.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    attention_mask: torch.BoolTensor | None = None


class HasrdForCTC(CheckedLoadingMixin, PreTrainedModel):
    """
    The paper's measure of a representation (HASRD, section 3, "Evaluation"; Tables 3 and 4, Fig. 2).

    audio -> frozen HASRD or encoder -> representation -> two bidirectional LSTM layers -> characters, by CTC.

    What is measured stays in evaluation mode and gets no gradients. Of a HASRD there is all but the decoder when books
    are read, also those that come after them; else its encoder alone, and nothing when the features are read as they
    are. Padding is exact, see `BidirectionalLSTM`. A model loads in float32 unless `dtype` asks for another.
    """

    config_class = HasrdCTCConfig
    input_modalities = ("audio",)
    _supports_sdpa = True

    def __init__(self, config: HasrdCTCConfig):
        super().__init__(config)
        self.main_input_name = "input_values" if config.reads_waveforms else "input_features"
        if config.reads_books:
            self.codec = HasrdModel(config.speech_config)
            self.codec.decoder = None
        elif config.representation != "features":
            self.encoder = build_encoder(config.encoder_config)
        if config.representation == "layers":
            self.layer_weights = nn.Parameter(torch.empty(config.encoder_config.num_hidden_layers + 1))
        self.lstm = BidirectionalLSTM(
            config.representation_size, config.hidden_size, config.num_hidden_layers, config.dropout
        )
        self.head = nn.Linear(2 * config.hidden_size, config.vocab_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """PyTorch's own values; all layers count alike."""
        if isinstance(module, (nn.LSTM, nn.Linear)):
            bound = (module.hidden_size if isinstance(module, nn.LSTM) else module.in_features) ** -0.5
            for weight in module.parameters():
                init.uniform_(weight, -bound, bound)
        elif isinstance(module, HasrdForCTC) and module.config.representation == "layers":
            init.zeros_(module.layer_weights)

    @classmethod
    def from_speech_model(cls, folder: str, **fields: Any) -> "HasrdForCTC":
        """
        A new recognizer on what is in a folder, float32.

        Args:
            folder: or Hub id, of a HASRD, BestRQ, HuBERT, wav2vec 2.0 or WavLM; fields: of `HasrdCTCConfig`.

        Raises:
            StrictDataclassClassValidationError (of huggingface_hub): another kind of model, or fields that do not fit.
            ValueError: weights are missing, or the semantic book was fitted on another encoder or layer.
        """
        speech_config = AutoConfig.from_pretrained(folder)
        speech_config.name_or_path = ""  # which would be a folder of this machine
        model = cls(HasrdCTCConfig(speech_config=speech_config, **fields))
        config = model.config
        if config.is_codec and config.representation != "features":
            source = HasrdModel.from_pretrained(folder)
            source.decoder = None
            if config.reads_books:
                model.codec.load_state_dict(source.state_dict())
            else:
                model.encoder.load_state_dict(source.encoder.state_dict())
        elif config.representation != "features":
            load_encoder_weights(model.encoder, folder)
        return model

    def check_parts(self, name: str):
        """Raise ValueError for a semantic book that was fitted on another encoder or layer; `name` is the model's."""
        if self.config.reads_books:
            self.codec.check_parts(name)

    def freeze_speech_model(self):
        """Take what is measured out of `parameters()` that are trained."""
        for module in self._speech_models():
            module.requires_grad_(False)

    def _speech_models(self) -> list[nn.Module]:
        return [module for name, module in self.named_children() if name in ("codec", "encoder")]

    def train(self, mode: bool = True) -> "HasrdForCTC":
        """Training mode for the recognizer alone."""
        super().train(mode)
        for module in self._speech_models():
            module.eval()
        return self

    @property
    def layer_shares(self) -> Tensor | None:
        """Weights `(layers + 1,)` of "layers", which add up to 1 (Fig. 2); None of other representations."""
        return self.layer_weights.float().softmax(dim=0) if self.config.representation == "layers" else None

    @torch.no_grad()
    def represent(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """
        What is measured, `(batch, tokens, representation_size)` float32, zeros on padding, and which tokens are real
        `(batch, tokens)`. Of "layers" it is all of them, `(batch, tokens, layers + 1, dim)`, not weighted yet.

        Args:
            input_features: `(batch, mel frames, mels)`, for a BestRQ.
            input_values: `(batch, samples)` at 16 kHz, for the other encoders.
            attention_mask: `(batch, mel frames)` or `(batch, samples)`, 1 on real ones; all real when None.

        Raises:
            ValueError: the other kind of input or both, wrong shapes, an utterance without a frame or sample, padding
                before an utterance's end, NaN or infinity in it, a semantic book that has not been fitted.
        """
        config = self.config
        inputs, attention_mask = check_inputs(config, input_features, attention_mask, input_values)
        if config.representation == "features":
            states, mask = stack_frames(inputs, attention_mask, config.encoder_config.frames_per_token)
            return states.float(), mask
        if config.reads_books:
            states, mask = layer_states(self.codec.encoder, inputs, attention_mask)
            books = config.book_numbers
            codes = self.codec.quantize(states, mask, num_books=max(books) + 1).codes
            return self.codec.embed(codes, mask, books), mask
        states, mask = layer_states(self.encoder, inputs, attention_mask)
        return (states if config.representation == "layers" else states[:, :, config.layer]).float(), mask

    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        labels: Tensor | None = None,
        representation: Tensor | None = None,
    ) -> HasrdCTCOutput:
        """
        Logits of characters and blank at each token; see `represent` for arguments and errors.

        labels: `(batch, characters)`, -100 on padding.
        representation: what `represent` gave, in place of features or samples, where it was kept; `attention_mask` is
            then its own, `(batch, tokens)`.

        Raises:
            ValueError: labels of another shape, that are no characters, or more than an utterance's tokens can write.
        """
        if representation is None:
            states, mask = self.represent(input_features, attention_mask, input_values)
        else:
            states, mask = representation, attention_mask.bool()
        if self.config.representation == "layers":
            states = torch.einsum("n,btnd->btd", self.layer_shares, states)
        hidden = self.lstm(states.to(self.head.weight.dtype), mask)
        output = HasrdCTCOutput(logits=self.head(hidden), attention_mask=mask)
        if labels is not None:
            blank, num_tokens = self.config.pad_token_id, mask.sum(dim=1)
            num_labels = count_labels(labels, num_tokens, self.config.vocab_size, blank)
            log_probabilities = output.logits.float().log_softmax(dim=-1).transpose(0, 1)
            total = nn.functional.ctc_loss(
                log_probabilities, labels[labels.ne(-100)], num_tokens, num_labels, blank, reduction="sum"
            )
            output.loss = total / num_labels.sum().clamp(min=1)
        return output

    @torch.no_grad()
    def generate(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        num_beams: int | None = None,
    ) -> Tensor:
        """
        Transcribe greedily: ids `(batch, characters)` without blanks and repetitions, `pad_token_id` behind the end.

        Arguments and errors as of `represent`, and

        Raises:
            ValueError: `num_beams` above 1: without a language model, beams find what the likeliest path has already.
        """
        if num_beams not in (None, 1):
            raise ValueError(f"num_beams is {num_beams}, but this model is decoded greedily: leave it out.")
        output = self(input_features, attention_mask, input_values)
        rows = read_off(output.logits, output.attention_mask, self.config.pad_token_id)
        return pad_sequence(rows, batch_first=True, padding_value=self.config.pad_token_id)


def count_labels(labels: Tensor, num_tokens: Tensor, vocab_size: int, blank_id: int) -> Tensor:
    """
    How many labels `(batch,)` there are in `(batch, characters)`, -100 on padding, of `num_tokens` `(batch,)` tokens.

    Raises:
        ValueError: another shape, ids that are no characters, or more of them than CTC can write at so many tokens.
    """
    if labels.dim() != 2 or len(labels) != len(num_tokens):
        raise ValueError(f"labels must be (batch, characters) of {len(num_tokens)} rows; got {tuple(labels.shape)}.")
    real = labels.ne(-100)
    wrong = labels[real & ((labels < 0) | (labels >= vocab_size) | (labels == blank_id))]
    if len(wrong):
        raise ValueError(
            f"labels must lie in [0, {vocab_size}), without the blank, {blank_id}, and be -100 on padding; got "
            f"{wrong.unique().tolist()}."
        )
    repeated = (labels[:, 1:] == labels[:, :-1]) & real[:, 1:]
    needed = real.sum(dim=1) + repeated.sum(dim=1)  # a blank stands between two that are alike
    impossible = (needed > num_tokens).nonzero().flatten().tolist()
    if impossible:
        raise ValueError(
            f"the texts of the utterances {impossible} of this batch take {needed[impossible].tolist()} tokens, and "
            f"their audio has {num_tokens[impossible].tolist()}: correct them or leave them out."
        )
    return real.sum(dim=1)


def read_off(logits: Tensor, mask: Tensor, blank_id: int) -> list[Tensor]:
    """
    The likeliest path without repetitions and blanks: ids `(characters,)` of each utterance, of logits `(batch,
    tokens, vocabulary)` and their mask `(batch, tokens)`.
    """
    path = logits.argmax(dim=-1).masked_fill(~mask, blank_id)
    before = nn.functional.pad(path, (1, 0), value=blank_id)[:, :-1]
    written = (path != blank_id) & (path != before)
    return [row[kept] for row, kept in zip(path, written)]


__all__ = ["HasrdForCTC"]
