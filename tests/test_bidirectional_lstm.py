"""Questions to the LSTM layers of both directions: are they PyTorch's on packed sequences?"""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from clearspeech.modeling.bidirectional_lstm import BidirectionalLSTM

LENGTHS = torch.tensor([3, 7, 1])
MASK = torch.arange(8) < LENGTHS[:, None]  # one frame is padding in all rows


def name_as_theirs(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Ours by PyTorch's names: forward_layers.1.weight_ih_l0 is weight_ih_l1, backward_layers' end with _reverse."""
    named = {}
    for name, value in weights.items():
        direction, layer, weight = name.split(".")
        named[f"{weight[:-1]}{layer}{'_reverse' if direction == 'backward_layers' else ''}"] = value
    return named


@pytest.fixture
def layers() -> tuple[BidirectionalLSTM, nn.LSTM]:
    """Ours, and PyTorch's with the same weights, float64."""
    torch.manual_seed(0)
    ours = BidirectionalLSTM(5, 6, num_layers=3).double()
    theirs = nn.LSTM(5, 6, num_layers=3, bidirectional=True, batch_first=True).double()
    theirs.load_state_dict(name_as_theirs(ours.state_dict()))
    return ours, theirs


def test_states_and_gradients_are_those_of_packed_sequences(layers):
    ours, theirs = layers
    states = torch.randn(3, 8, 5, dtype=torch.float64, requires_grad=True)
    packed = pack_padded_sequence(states, LENGTHS, batch_first=True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(theirs(packed)[0], batch_first=True, total_length=8)
    output = ours(states, MASK)
    assert torch.allclose(output, expected, atol=1e-12) and output[~MASK].eq(0).all()
    direction = torch.randn_like(output)
    (expected_gradient,) = torch.autograd.grad((expected * direction).sum(), states, retain_graph=True)
    (expected * direction).sum().backward(inputs=list(theirs.parameters()))
    (output * direction).sum().backward()
    assert torch.allclose(states.grad, expected_gradient, atol=1e-12) and states.grad[~MASK].eq(0).all()
    gradients = name_as_theirs({name: weight.grad for name, weight in ours.named_parameters()})
    for name, weight in theirs.named_parameters():
        assert torch.allclose(gradients[name], weight.grad, atol=1e-12), name


def test_what_stands_in_the_padding_reaches_nothing(layers):
    states = torch.randn(3, 8, 5, dtype=torch.float64)
    expected = layers[0](states, MASK)
    states[~MASK] = torch.nan
    output = layers[0](states.requires_grad_(), MASK)
    assert torch.equal(output, expected)
    output.sum().backward()
    assert all(weight.grad.isfinite().all() for weight in layers[0].parameters()) and states.grad.isfinite().all()


def test_dropout_stands_between_layers_and_in_training_alone():
    torch.manual_seed(0)
    states = torch.randn(3, 8, 5)
    one, two = (BidirectionalLSTM(5, 6, num_layers, dropout=0.5) for num_layers in (1, 2))
    assert torch.equal(one(states, MASK), one(states, MASK))
    assert not torch.equal(two(states, MASK), two(states, MASK))
    assert torch.equal(two.eval()(states, MASK), two(states, MASK))
