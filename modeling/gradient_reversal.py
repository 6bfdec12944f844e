"""The gradient reversal layer (Ganin and Lempitsky, 2015; GRL of FactoredASR, eq. 1)."""

import torch
from torch import Tensor


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return values.view_as(values)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradient, None


def reverse_gradient(values: Tensor, weight: float = 1.0) -> Tensor:
    """`values` as they are; their gradient comes back times `-weight`."""
    return _ReverseGradient.apply(values, weight)
