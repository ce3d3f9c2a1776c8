"""From observed values to scales and zero points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    """Return scale ``(high - low) / (2^bits - 1)`` and zero point ``round(-low / scale)``.

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


def symmetric_parameters(low: Tensor, high: Tensor, bits: int) -> AffineParameters:
    """Return the least scale whose signed integers span the range, zero point ``2^(bits - 1)``.

    The signed integers ``-2^(bits-1) .. 2^(bits-1) - 1`` of an engine are the grid's
    ``0 .. 2^bits - 1`` less the zero point, which is in the middle whatever the range is.

    Args:
        low: Lower ends of the ranges, any shape.
        high: Upper ends, of the same shape.
        bits: 2 to 8.
    """
    half = 2 ** (bits - 1)
    scale = torch.maximum(high / (half - 1), low / -half)
    # As narrow as a range may be on either grid.
    scale = scale.clamp(min=SMALLEST_WIDTH / (2**bits - 1))
    return AffineParameters(scale, torch.full_like(scale, half))


@dataclass(frozen=True)
class Grid:
    """The integers of a range, and those that may stand for zero.

    Attributes:
        bits: 2 to 8.
        include_zero: Every range is extended to contain zero.
        symmetric: Zero is in the middle.
    """

    bits: int
    include_zero: bool = False
    symmetric: bool = False

    def parameters(self, low: Tensor, high: Tensor) -> AffineParameters:
        """Return scale and zero point of ranges, of the shape of ``low`` and ``high``."""
        if self.symmetric:
            return symmetric_parameters(low, high, self.bits)
        return affine_parameters(low, high, self.bits, self.include_zero)


RangeFinder = Callable[[Tensor, Grid], tuple[Tensor, Tensor]]
"""From rows of values (rows, n) and their grid to the lower and upper ends, (rows, 1) each."""


def extremes(rows: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return minimum and maximum of each row (a :data:`RangeFinder`)."""
    low, high = rows.aminmax(dim=1, keepdim=True)
    return low, high


def channel_ranges(
    weight: Tensor, grid: Grid, find: RangeFinder = extremes
) -> tuple[Tensor, Tensor]:
    """Return the range of each output channel.

    Args:
        weight: (out_channels, ...) of a convolution or a linear layer.
        grid: What ``find`` is to fit the ranges to.
        find: Minimum and maximum, or another way to find a range.

    Returns:
        Two tensors of shape (out_channels, 1, ...) that broadcast against ``weight``.
    """
    low, high = find(weight.flatten(1), grid)
    shape = (-1, *(1,) * (weight.dim() - 1))
    return low.view(shape), high.view(shape)


def group_ranges(
    weight: Tensor, group_size: int, grid: Grid, find: RangeFinder = extremes
) -> tuple[Tensor, Tensor]:
    """Return the range of each group of neighboring weights of a channel.

    Args:
        weight: (out_features, in_features) of a linear layer.
        group_size: Weights of a group; the last one of a channel has what is left.
        grid: What ``find`` is to fit the ranges to.
        find: Minimum and maximum, or another way to find a range.

    Returns:
        Two tensors of shape (out_features, groups).
    """
    channels = len(weight)
    whole = weight.shape[1] // group_size * group_size
    parts = [weight[:, :whole].reshape(-1, min(group_size, max(whole, 1))), weight[:, whole:]]
    ends = [[x.view(channels, -1) for x in find(part, grid)] for part in parts if part.numel()]
    low, high = (torch.cat(each, dim=1) for each in zip(*ends, strict=True))
    return low, high


def spread_groups(values: Tensor, group_size: int, in_features: int) -> Tensor:
    """Return a value for each weight, (out_features, in_features), of one for each group."""
    return values.repeat_interleave(group_size, dim=1)[:, :in_features]


class MovingRange(nn.Module):
    """Exponential moving average of the batches' ranges, corrected for its start at zero.

    With momentum ``m`` and the ends ``e_1 .. e_t`` of the batches' ranges the average is
    ``(1 - m) * sum m^(t-i) e_i / (1 - m^t)`` (Kingma and Ba, 2015, section 3, for Adam's
    moments). The released ZSQ codes divide the already corrected value again at every step,
    which overshoots for the first hundred updates; this does not.

    Args:
        momentum: ``m``, at least 0 and below 1.
        grid: What ``find`` is to fit the ranges to.
        find: Minimum and maximum of a batch, or another way to find its range.
    """

    low: Tensor
    high: Tensor
    weight: Tensor

    def __init__(self, momentum: float, grid: Grid, find: RangeFinder = extremes) -> None:
        super().__init__()
        self.momentum = momentum
        self.grid = grid
        self.find = find
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        # 1 - m^t, the weight of all batches together. Accumulated as they are: subtracting a
        # rounded m^t from 1 would shorten the first ranges by 0.02 % at m = 0.9999.
        self.register_buffer("weight", torch.zeros(()))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Take one batch of values, of any shape, into the average."""
        low, high = self.find(x.detach().float().reshape(1, -1), self.grid)
        self.low.lerp_(low.view(()), 1 - self.momentum)
        self.high.lerp_(high.view(()), 1 - self.momentum)
        self.weight.lerp_(torch.ones_like(self.weight), 1 - self.momentum)

    def forget(self) -> None:
        """Begin anew."""
        for part in (self.low, self.high, self.weight):
            part.zero_()

    def range(self) -> tuple[Tensor, Tensor]:
        """Return the corrected average, two scalars; NaN before the first batch."""
        return self.low / self.weight, self.high / self.weight
