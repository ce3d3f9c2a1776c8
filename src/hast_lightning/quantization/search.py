"""Ranges that clip: at percentiles, or where the squared error is least."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hast_lightning.core.checks import require_range
from hast_lightning.core.part import part
from hast_lightning.quantization.axes import Ranges
from hast_lightning.quantization.ranges import AffineParameters, Grid, extremes
from hast_lightning.quantization.rounding import quantize_dequantize

SHRINK_FACTORS = tuple(1 - i / 20 for i in range(17))
"""From the whole range to a fifth of it. Twice as many come 0.2 % closer on the weights of a
ResNet-20 at 3 bits, and moving both ends on their own another 1.5 % at three times the cost."""
VALUES_AT_ONCE = 2**17
"""Numbers that one pass of the search works on, so that memory does not grow with the factors."""
SAMPLED_VALUES = 2**16
"""Values of a row that errors are measured on, evenly spaced: activations have millions."""


def percentiles(rows: Tensor, grid: Grid, percentile: float) -> tuple[Tensor, Tensor]:
    """Return the values at ``percentile`` and at ``100 - percentile`` percent of each row.

    By the nearest-rank definition: the upper end is the smallest value that at least
    ``percentile`` percent of the row do not exceed. A row of which only the farthest values
    differ, whose range would have no width, keeps its extremes.

    Args:
        rows: (rows, n).
        grid: Of no account here (a :data:`RangeFinder`).
        percentile: Above 50, at most 100.

    Returns:
        Lower and upper ends, (rows, 1) each.
    """
    count = rows.shape[1]
    # Decimal fractions are not exact: 99.9 % of 1,000 values are 999 and no more.
    rank = math.ceil(round(percentile / 100 * count, 6))
    high = rows.kthvalue(rank, dim=1, keepdim=True).values
    low = rows.kthvalue(count - rank + 1, dim=1, keepdim=True).values
    lowest, highest = extremes(rows, grid)
    empty = low == high
    return torch.where(empty, lowest, low), torch.where(empty, highest, high)


def least_squares(
    rows: Tensor,
    grid: Grid,
    factors_of_range: Sequence[float] = SHRINK_FACTORS,
    power: float = 2.0,
) -> tuple[Tensor, Tensor]:
    """Return each row's shrunken range with the least squared rounding error.

    Ranges shrink towards zero, or towards the end that is closer to it where zero is not
    inside. The whole range is among them, so that the error is never larger than its.

    Args:
        rows: (rows, n).
        grid: The integers that the values are rounded to.
        factors_of_range: What the ends are multiplied by, from 1 down.
        power: Of the error, in place of its square.

    Returns:
        Lower and upper ends, (rows, 1) each.
    """
    low, high = extremes(rows, grid)
    towards = torch.zeros_like(low).clamp(low, high)
    factors = rows.new_tensor(factors_of_range).view(-1, 1, 1)
    lows, highs = towards + factors * (low - towards), towards + factors * (high - towards)
    # The whole range exactly, free of rounding in the line above.
    lows[0], highs[0] = low, high
    errors = _errors(_sampled(rows), grid.parameters(lows, highs), grid.bits, power)
    best = errors.argmin(dim=0, keepdim=True)
    return lows.gather(0, best)[0], highs.gather(0, best)[0]


def _sampled(rows: Tensor) -> Tensor:
    """At most about :data:`SAMPLED_VALUES` of each row."""
    # An odd step does not meet the same column of an image in every line.
    step = rows.shape[1] // SAMPLED_VALUES | 1
    return rows[:, ::step].contiguous()


def _errors(rows: Tensor, parameters: AffineParameters, bits: int, power: float) -> Tensor:
    """Sums over (rows, n) for each of (candidates, rows, 1) scales; (candidates, rows, 1)."""
    at_once = max(1, VALUES_AT_ONCE // rows.numel())
    scales, zero_points = (torch.split(values, at_once) for values in parameters)
    return torch.cat(
        [
            _error(rows, scale, zero_point, bits, power)
            for scale, zero_point in zip(scales, zero_points, strict=True)
        ]
    )


def _error(rows: Tensor, scale: Tensor, zero_point: Tensor, bits: int, power: float) -> Tensor:
    error = quantize_dequantize(rows, scale, zero_point, bits).sub_(rows)
    if power != 2:
        return error.abs_().pow_(power).sum(-1, keepdim=True)
    result: Tensor = torch.linalg.vecdot(error, error)
    return result.unsqueeze(-1)


@part("ranges", "minmax")
class MinMax(Ranges):
    """Minimum and maximum: of a channel's weights as they are, of activations averaged."""

    # The function itself: quantizers know by it that no weight lies outside of its range.
    find = staticmethod(extremes)


@part("ranges", "mse")
class LeastSquares(Ranges):
    """Ranges that end where the squared rounding error is least."""

    def find(self, rows: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the best of shrunken ranges of each row."""
        return least_squares(rows, grid)


@part("ranges", "percentile")
class Percentile(Ranges):
    """Ranges that leave out the farthest values of either end."""

    percentile: float = 99.9
    """Where ranges end in percent of the values; 100: at the extremes."""

    def __post_init__(self) -> None:
        require_range("percentile", self.percentile, 50, 100, open_minimum=True)

    def find(self, rows: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the values at the percentile and at its mirror image."""
        return percentiles(rows, grid, self.percentile)
