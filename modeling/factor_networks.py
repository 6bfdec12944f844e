"""The networks that factor a speech encoder's states, and those that keep the factors apart (FactoredASR, 2.1)."""

import torch
from torch import Tensor, nn

from .gradient_reversal import reverse_gradient


def normalize_frames(states: Tensor) -> Tensor:
    """Each frame of `(batch, frames, dim)` at zero mean and unit variance over its values."""
    return nn.functional.layer_norm(states, states.shape[-1:])


class MultilayerPerceptron(nn.Sequential):
    """
    phi: "shallow MLPs with several hidden layers and ReLU activation", frame by frame.

    `(batch, frames, input_size)` to `(batch, frames, output_size)`.
    """

    def __init__(self, input_size: int, hidden_size: int, output_size: int, num_layers: int, dropout: float):
        layers = []
        for layer in range(num_layers):
            layers += [nn.Linear(input_size if layer == 0 else hidden_size, hidden_size), nn.ReLU()]
            layers += [nn.Dropout(dropout)]
        super().__init__(*layers, nn.Linear(hidden_size if num_layers else input_size, output_size))

    @property
    def hidden_layers(self) -> list[nn.Linear]:
        """Those in front of a ReLU."""
        return [layer for layer in self if isinstance(layer, nn.Linear)][:-1]


class FactorNetwork(MultilayerPerceptron):
    """
    Pi: such a network between normalized states and a normalized factor.

    Both are normalized frame by frame: with "batch-normalization" an utterance's factors would depend on the padding
    and on the other utterances. The factor is, because eq. 1's distances have no bound: factors that run from their
    reconstructions would grow without end.
    """

    def forward(self, states: Tensor) -> Tensor:
        return normalize_frames(super().forward(normalize_frames(states)))


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
        self.content = MultilayerPerceptron(factor_dim, output_size=factor_dim, **shape)
        self.context = MultilayerPerceptron(factor_dim, output_size=factor_dim, **shape)
        self.joint = MultilayerPerceptron(2 * factor_dim, output_size=frame_size, **shape)

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
