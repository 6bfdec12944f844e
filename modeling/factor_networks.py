"""The networks that factor a speech encoder's states, and those that keep the factors apart (FactoredASR, 2.1)."""

import torch
from torch import Tensor, nn

from .gradient_reversal import reverse_gradient


class FactorNetwork(nn.Sequential):
    """
    Pi and phi: "shallow MLPs with several hidden layers and ReLU activation", frame by frame.

    `(batch, frames, input_size)` to `(batch, frames, output_size)`. There is no batch normalization, which would make
    an utterance's factors depend on the padding and on the other utterances.
    """

    def __init__(self, input_size: int, hidden_size: int, output_size: int, num_layers: int, dropout: float):
        layers = []
        for layer in range(num_layers):
            layers += [nn.Linear(input_size if layer == 0 else hidden_size, hidden_size), nn.ReLU()]
            layers += [nn.Dropout(dropout)]
        super().__init__(*layers, nn.Linear(hidden_size if num_layers else input_size, output_size))


class CyclicReconstruction(nn.Module):
    """
    phi_content, phi_context and phi_joint of eq. 1: content from context, context from content, frames from both.

    Gradients of the first two are reversed on their way into the factors: the reconstructors get better at telling
    one factor from the other, the factors get worse at being told. Used in training only.

    Args:
        frame_size: of the encoder's input frames.
    """

    def __init__(self, factor_dim: int, frame_size: int, hidden_size: int, num_layers: int, dropout: float):
        super().__init__()
        shape = dict(hidden_size=hidden_size, num_layers=num_layers, dropout=dropout)
        self.content = FactorNetwork(factor_dim, output_size=factor_dim, **shape)
        self.context = FactorNetwork(factor_dim, output_size=factor_dim, **shape)
        self.joint = FactorNetwork(2 * factor_dim, output_size=frame_size, **shape)

    def forward(self, content: Tensor, context: Tensor, reversal_weight: float) -> tuple[Tensor, Tensor, Tensor]:
        """
        What the factors tell of one another, and both of the frames: content and context `(batch, frames,
        factor_dim)`, frames `(batch, frames, frame_size)`.
        """
        return (
            self.content(reverse_gradient(context, reversal_weight)),
            self.context(reverse_gradient(content, reversal_weight)),
            self.joint(torch.cat([content, context], dim=-1)),
        )
