"""LSTM layers that read utterances of a batch in both directions."""

import torch
from torch import Tensor, nn


class BidirectionalLSTM(nn.Module):
    """
    What `nn.LSTM(bidirectional=True)` is on packed sequences, which on a CPU train less than half as fast. On padded
    ones its backward direction would begin in the padding: here it gets each utterance reversed in time.

    Args:
        input_size, hidden_size: of the states, and of each direction; num_layers: at least 1; dropout: between layers.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int, dropout: float = 0.0):
        super().__init__()
        sizes = [input_size, *[2 * hidden_size] * (num_layers - 1)]
        self.forward_layers = nn.ModuleList(nn.LSTM(size, hidden_size, batch_first=True) for size in sizes)
        self.backward_layers = nn.ModuleList(nn.LSTM(size, hidden_size, batch_first=True) for size in sizes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """
        `(batch, frames, 2 x hidden_size)`, zeros on padding, of states `(batch, frames, input_size)`.

        mask: `(batch, frames)` boolean, True on real frames, which come first.
        """
        positions = torch.arange(mask.shape[1], device=mask.device)
        reversed_positions = torch.where(mask, mask.sum(dim=1, keepdim=True) - 1 - positions, positions)[..., None]
        states = states.masked_fill(~mask[..., None], 0.0)  # zero times NaN would be NaN in the gradients
        for index, (onward, backward) in enumerate(zip(self.forward_layers, self.backward_layers, strict=True)):
            if index:
                states = self.dropout(states)
            from_end, _ = backward(states.take_along_dim(reversed_positions, dim=1))
            states = torch.cat([onward(states)[0], from_end.take_along_dim(reversed_positions, dim=1)], dim=2)
        return states.masked_fill(~mask[..., None], 0.0)
