"""Beam search over a transducer: torchaudio's, with Transformers' prediction and joint networks."""

import torch
from torch import Tensor, nn
from torchaudio.models import RNNTBeamSearch
from transformers import PreTrainedConfig
from transformers.models.parakeet.modeling_parakeet import ParakeetRNNTDecoder, ParakeetRNNTJointNetwork


class _Transducer(nn.Module):
    """The calls of `torchaudio.models.RNNT` that its beam search makes."""

    def __init__(self, decoder: ParakeetRNNTDecoder, joint: ParakeetRNNTJointNetwork):
        super().__init__()
        self.decoder, self.joint = decoder, joint

    def transcribe(self, states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder has run already."""
        return states, lengths

    def predict(
        self, tokens: Tensor, lengths: Tensor, state: list[list[Tensor]] | None
    ) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
        """
        The prediction network's outcome `(hypotheses, 1, dim)` for tokens `(hypotheses, 1)`, and its state: for each
        layer hidden and cell values `(hypotheses, dim)`.
        """
        before = None
        if state is not None:
            before = tuple(torch.stack(values) for values in zip(*state))
        output, after = self.decoder.lstm(self.decoder.embedding(tokens), before)
        return self.decoder.decoder_projector(output), lengths, [list(layer) for layer in zip(*after)]

    def join(
        self, states: Tensor, state_lengths: Tensor, predictions: Tensor, prediction_lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits `(hypotheses, 1, 1, vocabulary)` at one frame `(1, 1, dim)`."""
        return self.joint(predictions[:, None], states[:, :, None]), state_lengths, prediction_lengths


def beam_search(
    decoder: ParakeetRNNTDecoder,
    joint: ParakeetRNNTJointNetwork,
    states: Tensor,
    config: PreTrainedConfig,
    num_beams: int,
) -> Tensor:
    """
    Ids `(tokens,)` of the best of `num_beams` hypotheses for one utterance's states `(frames, dim)`.

    Hypotheses are ranked by their score for each token, as torchaudio does.
    """
    model, most = _Transducer(decoder, joint), config.max_symbols_per_step
    search = RNNTBeamSearch(model, config.blank_token_id, step_max_tokens=most)
    best = search(states, torch.tensor(len(states), device=states.device), num_beams)[0]
    return torch.tensor(best[0][1:], dtype=torch.long, device=states.device)  # the first is the blank it started from
