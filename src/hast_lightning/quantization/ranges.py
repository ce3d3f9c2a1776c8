"""From observed values to scales and zero points."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

SMALLEST_WIDTH = 1e-8
"""Narrowest range, so that a constant tensor has a positive scale (as ZeroQ and its heirs)."""


class AffineParameters(NamedTuple):
    """Scale and integer-valued zero point, both float32 and of the same shape."""

    scale: Tensor
    zero_point: Tensor


def affine_parameters(
    low: Tensor, high: Tensor, bits: int, include_zero: bool = False
) -> AffineParameters:
    """Scale ``(high - low) / (2^bits - 1)`` and zero point ``round(-low / scale)``.

    Args:
        low: Lower ends of the ranges, any shape.
        high: Upper ends, of the same shape.
        bits: 2 to 8.
        include_zero: Extend the ranges to contain zero; the zero point is then one of the
            grid's integers, and zero is represented exactly.
    """
    if include_zero:
        low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low).clamp(min=SMALLEST_WIDTH) / (2**bits - 1)
    return AffineParameters(scale, torch.round(-low / scale))


def channel_ranges(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and maximum per output channel.

    Args:
        weight: (out_channels, ...) of a convolution or a linear layer.

    Returns:
        Two tensors of shape (out_channels, 1, ...) that broadcast against ``weight``.
    """
    low, high = weight.flatten(1).aminmax(dim=1)
    shape = (-1, *(1,) * (weight.dim() - 1))
    return low.view(shape), high.view(shape)


class MovingRange(nn.Module):
    """Exponential moving average of batch minima and maxima, corrected for its start at zero.

    With momentum ``m`` and batch extremes ``e_1 .. e_t`` the average is
    ``(1 - m) * sum m^(t-i) e_i / (1 - m^t)`` (Kingma and Ba, 2015, section 3, for Adam's
    moments). The released ZSQ codes divide the already corrected value again at every step,
    which overshoots for the first hundred updates; this does not.
    """

    low: Tensor
    high: Tensor
    weight: Tensor

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        # 1 - m^t, the weight of all batches together. Accumulated as they are: subtracting a
        # rounded m^t from 1 would shorten the first ranges by 0.02 % at m = 0.9999.
        self.register_buffer("weight", torch.zeros(()))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Take one batch of values, of any shape, into the average."""
        low, high = x.detach().float().aminmax()
        self.low.lerp_(low, 1 - self.momentum)
        self.high.lerp_(high, 1 - self.momentum)
        self.weight.lerp_(torch.ones_like(self.weight), 1 - self.momentum)

    def range(self) -> tuple[Tensor, Tensor]:
        """The corrected average, two scalars; NaN before the first batch."""
        return self.low / self.weight, self.high / self.weight
