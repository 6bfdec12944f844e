"""LSTM layers that read utterances of a batch in both directions."""

import torch
from torch import Tensor, nn


class BidirectionalLSTM(nn.Module):
    """
    What `nn.LSTM(bidirectional=True)` is on packed sequences, which on a CPU train less than half as fast. On padded
    ones its direction back would begin in the padding: here that direction gets each utterance turned around.

    Args:
        input_size, hidden_size: of the states, and of each direction; dropout: between the layers.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int, dropout: float = 0.0):
        super().__init__()
        sizes = [input_size, *[2 * hidden_size] * (num_layers - 1)]
        self.onward = nn.ModuleList(nn.LSTM(size, hidden_size, batch_first=True) for size in sizes)
        self.back = nn.ModuleList(nn.LSTM(size, hidden_size, batch_first=True) for size in sizes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """
        `(batch, frames, 2 x hidden_size)`, zeros on padding, of states `(batch, frames, input_size)`.

        mask: `(batch, frames)` boolean, True on real frames, which come first.
        """
        positions = torch.arange(mask.shape[1], device=mask.device)
        mirrored = torch.where(mask, mask.sum(dim=1, keepdim=True) - 1 - positions, positions)[..., None]
        for number, (onward, back) in enumerate(zip(self.onward, self.back, strict=True)):
            if number:
                states = self.dropout(states)
            read_back, _ = back(states.take_along_dim(mirrored, dim=1))
            states = torch.cat([onward(states)[0], read_back.take_along_dim(mirrored, dim=1)], dim=2)
        return states.masked_fill(~mask[..., None], 0.0)
