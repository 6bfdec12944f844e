"""Questions to the codec's layers: equations, rates, padding, sizes, speed-ups that change nothing, memory."""

import pytest
import torch
from torch import nn
from transformers import DacConfig, DacModel
from transformers.models.dac.modeling_dac import DacDecoder, DacResidualUnit, Snake1d

from clearspeech.modeling.codec_layers import (
    DepthwiseConvolution,
    DownsamplingBlock,
    FbankFrontEnd,
    ResidualUnit,
    SampleConvolution,
    Snake,
    TransposedConvolution,
    UpsamplingBlock,
    WaveformDecoder,
)

TINY_FRONT_END = dict(num_mel_bins=8, conv_channels=(8, 12, 16), hidden_size=10)
TINY_DECODER = dict(hidden_size=10, decoder_channels=16, ratios=(4, 3, 2))


def count(*modules: nn.Module) -> int:
    return sum(weight.numel() for module in modules for weight in module.parameters())


def test_snake_is_dacs_with_its_gradients():
    ours, dacs = Snake(3).double(), Snake1d(3).double()
    with torch.no_grad():
        ours.alpha.copy_(torch.tensor([0.5, 1.0, 3.0])[None, :, None])
        dacs.load_state_dict(ours.state_dict())
    inputs = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(ours(inputs), dacs(inputs))
    weights = torch.randn(2, 3, 7, dtype=torch.float64)
    expected = torch.autograd.grad((dacs(inputs) * weights).sum(), [inputs, dacs.alpha])
    torch.testing.assert_close(torch.autograd.grad((ours(inputs) * weights).sum(), [inputs, ours.alpha]), expected)
    assert torch.autograd.gradcheck(ours, inputs)


@pytest.mark.parametrize("dilation", [1, 3, 9])
@pytest.mark.parametrize("frames", [1, 9, 40])
def test_the_depthwise_convolution_is_pytorchs(dilation, frames):
    layer = DepthwiseConvolution(6, 7, dilation).double()
    inputs = torch.randn(2, 6, frames, dtype=torch.float64, requires_grad=True)
    expected = nn.functional.conv1d(
        inputs, layer.weight, layer.bias, padding=3 * dilation, dilation=dilation, groups=6
    )
    torch.testing.assert_close(layer(inputs), expected)
    gradients = [
        torch.autograd.grad(output.square().sum(), [inputs, layer.weight]) for output in (layer(inputs), expected)
    ]
    torch.testing.assert_close(*gradients)


def test_the_convolution_to_samples_is_pytorchs():
    layer, inputs = SampleConvolution(6, 7), torch.randn(2, 6, 30)
    torch.testing.assert_close(layer(inputs), nn.Conv1d.forward(layer, inputs))


@pytest.mark.parametrize("stride", [2, 4, 5])
@pytest.mark.parametrize("frames", [1, 3, 60])
def test_the_transposed_convolution_is_pytorchs(stride, frames):
    """With few frames and with many; an odd stride has one sample more to the right."""
    layer = TransposedConvolution(6, 4, stride).double()
    inputs = torch.randn(2, 6, frames, dtype=torch.float64, requires_grad=True)
    expected = nn.ConvTranspose1d.forward(layer, inputs)
    assert expected.shape == (2, 4, stride * frames)
    torch.testing.assert_close(layer(inputs), expected)
    moved = [inputs, layer.weight, layer.bias]
    gradients = [torch.autograd.grad(output.square().sum(), moved) for output in (layer(inputs), expected)]
    torch.testing.assert_close(*gradients)


def randomize_snakes(module: nn.Module):
    """Other values than the 1 that they start from, and than one another's."""
    for snake in module.modules():
        if isinstance(snake, Snake1d):
            nn.init.uniform_(snake.alpha, 0.5, 2.0)


def load_unit(dac: DacResidualUnit, ours: ResidualUnit):
    pairs = (
        (dac.snake1, ours.snake1),
        (dac.conv1, ours.dilated),
        (dac.snake2, ours.snake2),
        (dac.conv2, ours.projection),
    )
    for target, source in pairs:
        target.load_state_dict(source.state_dict())


def load_decoder(dac: DacDecoder, ours: WaveformDecoder):
    pairs = [(dac.conv1, ours.input_convolution), (dac.snake1, ours.snake), (dac.conv2, ours.output_convolution)]
    for block, our_block in zip(dac.block, ours.blocks, strict=True):
        pairs += [(block.snake1, our_block.snake), (block.conv_t1, our_block.convolution)]
        for unit, our_unit in zip((block.res_unit1, block.res_unit2, block.res_unit3), our_block.units, strict=True):
            load_unit(unit, our_unit)
    for target, source in pairs:
        target.load_state_dict(source.state_dict())


@pytest.mark.parametrize("separable", [True, False])
def test_a_residual_unit_is_dacs(separable):
    """With a depthwise and a pointwise convolution in place of DAC's dilated one, where they are separable."""
    unit, dac = ResidualUnit(6, 3, separable), DacResidualUnit(6, 3)
    if separable:
        dac.conv1 = nn.Sequential(nn.Conv1d(6, 6, 7, dilation=3, padding=9, groups=6), nn.Conv1d(6, 6, 1))
    randomize_snakes(unit)
    load_unit(dac, unit)
    inputs = torch.randn(2, 6, 30)
    torch.testing.assert_close(unit(inputs, None), dac(inputs))


@pytest.mark.parametrize("frames", [1, 12, 200])
def test_the_decoder_is_dacs(frames):
    """Where strides are even: DAC's loses a sample at an odd one."""
    decoder = WaveformDecoder(hidden_size=12, decoder_channels=16, ratios=(4, 2), separable=False)
    dac = DacDecoder(DacConfig(hidden_size=12, decoder_hidden_size=16, upsampling_ratios=[4, 2]))
    randomize_snakes(decoder)
    load_decoder(dac, decoder)
    states = torch.randn(2, frames, 12)
    torch.testing.assert_close(decoder(states), dac(states.transpose(1, 2))[:, 0], atol=1e-6, rtol=1e-5)


def test_frames_become_states_and_states_become_samples():
    front_end, decoder = FbankFrontEnd(**TINY_FRONT_END), WaveformDecoder(**TINY_DECODER)
    states, mask = front_end(torch.randn(2, 20, 8))
    assert states.shape == (2, 5, 10) and bool(mask.all())
    assert decoder(states).shape == (2, 5 * 24)
    assert front_end(torch.randn(1, 21, 8))[0].shape == (1, 6, 10)  # a token that has begun


@pytest.mark.parametrize("separable", [True, False])
def test_padding_changes_nothing(separable):
    """Neither how far, nor with what."""
    front_end = FbankFrontEnd(**TINY_FRONT_END, separable=separable)
    decoder = WaveformDecoder(**TINY_DECODER, separable=separable)
    features = torch.randn(3, 24, 8)
    mask = torch.arange(24) < torch.tensor([[12], [4], [24]])
    states, states_mask = front_end(features, mask)
    samples = decoder(states, states_mask)
    assert states_mask.sum(dim=1).tolist() == [3, 1, 6]
    for row, tokens in enumerate((3, 1, 6)):
        alone, _ = front_end(features[row, None, : 4 * tokens])
        torch.testing.assert_close(states[row, :tokens], alone[0], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(samples[row, : 24 * tokens], decoder(alone)[0], atol=1e-6, rtol=1e-5)
        assert not samples[row, 24 * tokens :].any()


@pytest.mark.parametrize("separable", [True, False])
def test_what_stands_on_padding_does_not_matter_even_nan(separable):
    front_end, features = FbankFrontEnd(**TINY_FRONT_END, separable=separable), torch.randn(2, 22, 8)
    mask = torch.arange(22) < torch.tensor([[12], [22]])
    states, states_mask = front_end(features, mask)
    broken, _ = front_end(features.masked_fill(~mask[..., None], float("nan")), mask)
    assert torch.equal(broken[states_mask], states[states_mask])


def test_blocks_shorten_and_lengthen_the_mask():
    mask = torch.tensor([[[True] * 4 + [False] * 2]])
    shorter, shorter_mask = DownsamplingBlock(4, 6, 4, 2, (1, 3), True)(torch.randn(1, 4, 6), mask)
    assert shorter.shape == (1, 6, 3) and shorter_mask.tolist() == [[[True, True, False]]]
    longer, longer_mask = UpsamplingBlock(6, 4, 5, (1, 3), True)(shorter, shorter_mask)
    assert longer.shape == (1, 4, 15) and longer_mask.sum() == 10


def test_a_kernel_that_does_not_fit_its_stride_is_refused():
    with pytest.raises(ValueError, match="exceed its stride by an even number; got 5 and 2"):
        DownsamplingBlock(4, 6, 5, 2, (1,), True)


def test_the_sizes_are_those_of_table_1():
    """76.6 M, 68.0 M and 48.0 M with nine books."""
    with torch.device("meta"):
        dac = DacModel(DacConfig())
        assert round(count(dac) / 1e6, 1) == 76.6
        for separable, millions in ((False, 68.0), (True, 48.0)):
            parts = FbankFrontEnd(separable=separable), WaveformDecoder(separable=separable), dac.quantizer
            assert round(count(*parts) / 1e6, 1) == millions
        assert count(WaveformDecoder(separable=False)) == count(dac.decoder)


def test_samples_stay_in_range_and_silence_is_finite():
    decoder = WaveformDecoder(**TINY_DECODER)
    assert decoder(100 * torch.randn(1, 5, 10)).abs().max() <= 1
    assert bool(decoder(torch.zeros(1, 5, 10)).isfinite().all())
    assert bool(FbankFrontEnd(**TINY_FRONT_END)(torch.zeros(1, 8, 8))[0].isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(dtype):
    decoder, states = WaveformDecoder(**TINY_DECODER), torch.randn(1, 5, 10)
    expected = decoder(states)
    output = decoder.to(dtype)(states.to(dtype))
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), expected, atol=0.02, rtol=0.1)
