"""Questions to the LSTM layers of both directions: are they PyTorch's on packed sequences?"""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from clearspeech.modeling.bidirectional_lstm import BidirectionalLSTM

LENGTHS = torch.tensor([3, 7, 1])
MASK = torch.arange(8) < LENGTHS[:, None]  # one frame is padding in all rows


@pytest.fixture
def layers() -> tuple[BidirectionalLSTM, nn.LSTM]:
    """Ours, and PyTorch's with the same weights, float64."""
    torch.manual_seed(0)
    ours = BidirectionalLSTM(5, 6, num_layers=3).double()
    theirs = nn.LSTM(5, 6, num_layers=3, bidirectional=True, batch_first=True).double()
    weights = {}
    for suffix, direction in (("", ours.onward), ("_reverse", ours.back)):
        for number, layer in enumerate(direction):
            weights |= {f"{name[:-1]}{number}{suffix}": value for name, value in layer.state_dict().items()}
    theirs.load_state_dict(weights)
    return ours, theirs


def test_states_and_gradients_are_those_of_packed_sequences(layers):
    ours, theirs = layers
    states = torch.randn(3, 8, 5, dtype=torch.float64, requires_grad=True)
    packed = pack_padded_sequence(states, LENGTHS, batch_first=True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(theirs(packed)[0], batch_first=True, total_length=8)
    output = ours(states, MASK)
    assert torch.allclose(output, expected, atol=1e-12) and output[~MASK].eq(0).all()
    direction = torch.randn_like(output)
    (gradient,) = torch.autograd.grad((output * direction).sum(), states, retain_graph=True)
    (expected_gradient,) = torch.autograd.grad((expected * direction).sum(), states)
    assert torch.allclose(gradient, expected_gradient, atol=1e-12) and gradient[~MASK].eq(0).all()


def test_dropout_stands_between_layers_and_in_training_alone():
    torch.manual_seed(0)
    states = torch.randn(3, 8, 5)
    one, two = (BidirectionalLSTM(5, 6, num_layers, dropout=0.5) for num_layers in (1, 2))
    assert torch.equal(one(states, MASK), one(states, MASK))
    assert not torch.equal(two(states, MASK), two(states, MASK))
    assert torch.equal(two.eval()(states, MASK), two(states, MASK))
