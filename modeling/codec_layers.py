"""Convolutional layers of HASRD: the front-end over log-mel frames, and the decoder from states to samples."""

from collections.abc import Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.models.dac.modeling_dac import Snake1d

RESIDUAL_KERNEL = 7  # of DAC's residual units, and of its first and last convolution


class SnakeFunction(torch.autograd.Function):
    """`x + sin^2(alpha x) / alpha`, of which the backward pass keeps `x` alone: sines are cheaper than memory."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, alpha)
        output = (hidden * alpha).sin_().square_()  # in place: new memory costs as much as a pass over it
        return torch.addcmul(hidden, output, (alpha + 1e-9).reciprocal(), out=output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        hidden, alpha = ctx.saved_tensors
        inverse = (alpha + 1e-9).reciprocal()
        angle = hidden * alpha
        sine_squared = angle.sin().square_()
        double_sine = angle.mul_(2.0).sin_()  # sin(2 alpha x), the derivative of sin^2 but for alpha
        alpha_gradient = (gradient * (double_sine * hidden - sine_squared.mul_(inverse))).sum(dim=(0, 2), keepdim=True)
        return gradient.addcmul(gradient, double_sine.mul_(alpha * inverse)), alpha_gradient * inverse


class Snake(Snake1d):
    """DAC's activation, `x + sin^2(alpha x) / alpha` with one alpha per channel, with less memory in training."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return SnakeFunction.apply(hidden_states, self.alpha.to(hidden_states.dtype))


def channels_together(hidden: Tensor) -> Tensor:
    """`(batch, channels, frames)` with the channels of a frame side by side in memory: no copy when they are."""
    return hidden.transpose(1, 2).contiguous().transpose(1, 2)


def as_image(hidden: Tensor) -> Tensor:
    """`(batch, channels, frames)` as an image `(batch, channels, frames, 1)` in channels-last format."""
    return hidden.transpose(1, 2).contiguous().unsqueeze(2).permute(0, 3, 1, 2)


class DepthwiseConvolution(nn.Conv1d):
    """
    A convolution of each channel by itself; the number of frames stays.

    On a CPU several times as fast as `nn.Conv1d`, for which depthwise kernels with dilation are slow: frames that one
    kernel sees are `dilation` apart, so with time folded into rows of `dilation` frames the kernel is a column.
    """

    def __init__(self, channels: int, kernel: int, dilation: int):
        padding = (kernel - 1) * dilation // 2
        super().__init__(channels, channels, kernel, dilation=dilation, padding=padding, groups=channels)

    def forward(self, hidden: Tensor) -> Tensor:
        """`(batch, channels, frames)` to the same, on a CPU with the channels of a frame side by side."""
        if hidden.device.type != "cpu":
            return super().forward(hidden)
        frames, dilation = hidden.shape[2], self.dilation[0]
        hidden = nn.functional.pad(hidden.transpose(1, 2), (0, 0, 0, -frames % dilation)).contiguous()
        image = hidden.unflatten(1, (-1, dilation)).permute(0, 3, 1, 2)  # (batch, channels, rows, dilation)
        padding = (self.kernel_size[0] // 2, 0)
        image = nn.functional.conv2d(image, self.weight.unsqueeze(-1), self.bias, padding=padding, groups=self.groups)
        return image.permute(0, 2, 3, 1).flatten(1, 2)[:, :frames].transpose(1, 2)


class PointwiseConvolution(nn.Conv1d):
    """A linear map of each frame, computed as one."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """`(batch, channels, frames)` to the same, with the channels of a frame side by side."""
        return nn.functional.linear(hidden.transpose(1, 2), self.weight.squeeze(2), self.bias).transpose(1, 2)


class SampleConvolution(nn.Conv1d):
    """A convolution to one channel, the samples; on a CPU it reads the channels of a frame side by side."""

    def __init__(self, in_channels: int, kernel: int):
        super().__init__(in_channels, 1, kernel, padding=kernel // 2)

    def forward(self, hidden: Tensor) -> Tensor:
        """`(batch, channels, frames)` to `(batch, 1, frames)`."""
        if hidden.device.type != "cpu":
            return super().forward(hidden)
        kernels = as_image(self.weight)
        return nn.functional.conv2d(as_image(hidden), kernels, self.bias, padding=(self.padding[0], 0)).squeeze(3)


class TransposedConvolution(nn.ConvTranspose1d):
    """
    A transposed convolution twice as long as its stride: every frame becomes `stride` frames.

    On a CPU, where there are more frames than weights, it is computed as the convolution over two neighbouring frames
    that it is, which is nearly twice as fast and leaves the channels of a frame side by side.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__(
            in_channels,
            out_channels,
            kernel_size=2 * stride,
            stride=stride,
            padding=ceil(stride / 2),
            output_padding=stride % 2,
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """`(batch, channels, frames)` to `(batch, channels, frames x stride)`."""
        if hidden.device.type != "cpu" or hidden.numel() < self.weight.numel():
            return super().forward(hidden)
        stride, frames, first = self.stride[0], hidden.shape[2], self.padding[0]
        # (in, out, 2 x stride): the first half is of the frame itself, the second of the one before
        kernels = self.weight.unflatten(2, (2, stride)).flip(2).permute(3, 1, 2, 0)
        kernels = kernels.flatten(0, 1).unsqueeze(2).permute(0, 3, 1, 2)  # (stride x out, in, 2, 1), channels last
        image = as_image(hidden)
        output = nn.functional.conv2d(image, kernels, self.bias.repeat(stride), padding=(1, 0))
        output = output.permute(0, 2, 3, 1).unflatten(3, (stride, -1)).flatten(1, 3)  # (batch, frames, out)
        return output[:, first : first + frames * stride].transpose(1, 2)


def hide_padding(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Zeros where the mask `(batch, 1, frames)` is False, in `(batch, channels, frames)`; None hides nothing."""
    return hidden if mask is None else hidden * mask.to(hidden.dtype)


def reset_convolution(module: nn.Module):
    """
    Weights as PyTorch draws them and zero biases, for `_init_weights` of a model that has these layers.

    DAC's code asks for a normal distribution of 0.02, but on weights that its weight normalization computes anew: what
    it starts from is PyTorch's. In a depthwise kernel of 7 such small weights would silence the residual unit.
    """
    if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
        module.reset_parameters()
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, Snake1d):
        init.ones_(module.alpha)


class ResidualUnit(nn.Module):
    """
    DAC's residual unit: Snake, dilated convolution, Snake, convolution of one frame, added to the input.

    Args:
        channels: width; dilation: of the convolution over 7 frames.
        separable: the dilated convolution is depthwise and a pointwise one follows: "depthwise separable convolutions
            exclusively in the residual CNN layers" (HASRD, section 4.1).
    """

    def __init__(self, channels: int, dilation: int, separable: bool):
        super().__init__()
        self.separable = separable
        self.snake1 = Snake(channels)
        if separable:
            depthwise = DepthwiseConvolution(channels, RESIDUAL_KERNEL, dilation)
            self.dilated = nn.Sequential(depthwise, PointwiseConvolution(channels, channels))
            self.projection = PointwiseConvolution(channels, channels)
        else:
            padding = (RESIDUAL_KERNEL - 1) * dilation // 2
            self.dilated = nn.Conv1d(channels, channels, RESIDUAL_KERNEL, dilation=dilation, padding=padding)
            self.projection = nn.Conv1d(channels, channels, 1)
        self.snake2 = Snake(channels)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """`(batch, channels, frames)` to the same; mask: `(batch, 1, frames)`, True on real frames, or None."""
        hidden = channels_together(hidden) if self.separable else hidden.contiguous()  # as its convolutions want it
        residual = self.dilated(hide_padding(self.snake1(hidden), mask))
        return self.projection(self.snake2(residual)).add_(hidden)


class DownsamplingBlock(nn.Module):
    """
    Residual units, Snake, and a strided convolution: a block of DAC's encoder.

    Args:
        kernel, stride: of the strided convolution; their difference must be even, so that every `stride` frames
            become one.

    Raises:
        ValueError: another kernel.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, dilations: Sequence[int], separable: bool
    ):
        super().__init__()
        if kernel < stride or (kernel - stride) % 2:
            raise ValueError(f"a kernel must exceed its stride by an even number; got {kernel} and {stride}.")
        self.stride = stride
        self.units = nn.ModuleList(ResidualUnit(in_channels, dilation, separable) for dilation in dilations)
        self.snake = Snake(in_channels)
        self.convolution = nn.Conv1d(in_channels, out_channels, kernel, stride=stride, padding=(kernel - stride) // 2)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """`(batch, channels, frames / stride)` and its mask from `(batch, channels, frames)`, a multiple of stride."""
        for unit in self.units:
            hidden = unit(hidden, mask)
        hidden = self.convolution(hide_padding(self.snake(hidden), mask))
        return hidden, None if mask is None else mask[..., :: self.stride]


class UpsamplingBlock(nn.Module):
    """Snake, a transposed convolution twice as long as its stride, and residual units: a block of DAC's decoder."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dilations: Sequence[int], separable: bool):
        super().__init__()
        self.stride = stride
        self.snake = Snake(in_channels)
        self.convolution = TransposedConvolution(in_channels, out_channels, stride)
        self.units = nn.ModuleList(ResidualUnit(out_channels, dilation, separable) for dilation in dilations)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """`(batch, channels, frames x stride)` and its mask from `(batch, channels, frames)`."""
        hidden = self.convolution(hide_padding(self.snake(hidden), mask))
        if mask is not None:
            mask = mask.repeat_interleave(self.stride, dim=-1)
        for unit in self.units:
            hidden = unit(hidden, mask)
        return hidden, mask


class FbankFrontEnd(nn.Module):
    """
    Two strided blocks over log-mel frames (HASRD, section 2.1): 4 mel frames of 8 ms become one state, 512 samples.

    "Each with a kernel size of 4, a stride of 2, and a latent dimension of 1024", "three residual units, each with a
    1D-CNN and dilation rates of {1, 3, 9}" (section 3). The input convolution's 256 channels of
    one frame each make the 68.0 M and 48.0 M of Table 1.

    Args:
        conv_channels: widths before the first block and after each.
        hidden_size: of the states.
    """

    def __init__(
        self,
        num_mel_bins: int = 80,
        conv_channels: Sequence[int] = (256, 512, 1024),
        hidden_size: int = 1024,
        kernel: int = 4,
        stride: int = 2,
        dilations: Sequence[int] = (1, 3, 9),
        separable: bool = True,
    ):
        super().__init__()
        self.frames_per_state = stride ** (len(conv_channels) - 1)
        self.input_convolution = nn.Conv1d(num_mel_bins, conv_channels[0], 1)
        self.blocks = nn.ModuleList(
            DownsamplingBlock(before, after, kernel, stride, dilations, separable)
            for before, after in zip(conv_channels, conv_channels[1:])
        )
        self.snake = Snake(conv_channels[-1])
        self.output_convolution = nn.Conv1d(conv_channels[-1], hidden_size, 3, padding=1)

    def forward(self, input_features: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """
        States `(batch, states, hidden_size)` and their mask `(batch, states)`, True on real ones.

        input_features: `(batch, mel frames, mels)`, padded here to a multiple of 4 frames; attention_mask: `(batch,
            mel frames)`, 1 on real frames, all real when None. A state is real when its first mel frame is.
        """
        batch, frames = input_features.shape[:2]
        missing = -frames % self.frames_per_state
        if attention_mask is None and missing:
            attention_mask = torch.ones(batch, frames, device=input_features.device)
        mask = None
        if attention_mask is not None:
            is_real = attention_mask.bool()
            input_features = input_features.masked_fill(~is_real[..., None], 0.0)  # zero times NaN would be NaN
            mask = nn.functional.pad(is_real, (0, missing))[:, None]
        hidden = nn.functional.pad(input_features.transpose(1, 2), (0, missing))
        hidden = self.input_convolution(hidden)
        for block in self.blocks:
            hidden, mask = block(hidden, mask)
        states = self.output_convolution(hide_padding(self.snake(hidden), mask)).transpose(1, 2)
        if mask is None:
            return states, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        return states, mask[:, 0]


class WaveformDecoder(nn.Module):
    """
    DAC's decoder (HASRD, section 3): "4 1D-CNN upsampling layers with strides [8, 8, 4, 2] and a latent dimension of
    1536", halved at each, to samples in [-1, 1].

    Args:
        hidden_size: of the states; decoder_channels: before the first block; ratios: strides of the blocks.
    """

    def __init__(
        self,
        hidden_size: int = 1024,
        decoder_channels: int = 1536,
        ratios: Sequence[int] = (8, 8, 4, 2),
        dilations: Sequence[int] = (1, 3, 9),
        separable: bool = True,
    ):
        super().__init__()
        widths = [decoder_channels // 2**index for index in range(len(ratios) + 1)]
        self.input_convolution = nn.Conv1d(hidden_size, widths[0], RESIDUAL_KERNEL, padding=RESIDUAL_KERNEL // 2)
        self.blocks = nn.ModuleList(
            UpsamplingBlock(before, after, ratio, dilations, separable)
            for before, after, ratio in zip(widths, widths[1:], ratios)
        )
        self.snake = Snake(widths[-1])
        self.output_convolution = SampleConvolution(widths[-1], RESIDUAL_KERNEL)

    def forward(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """
        Samples `(batch, frames x product of the ratios)`, zeros on padding, of states `(batch, frames, hidden_size)`.

        mask: `(batch, frames)`, True on real frames, or None when all are.
        """
        mask = None if mask is None else mask[:, None]
        hidden = self.input_convolution(hide_padding(states.transpose(1, 2), mask))
        for block in self.blocks:
            hidden, mask = block(hidden, mask)
        samples = self.output_convolution(hide_padding(self.snake(hidden), mask)).tanh()
        return hide_padding(samples, mask)[:, 0]
