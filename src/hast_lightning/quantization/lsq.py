"""Arithmetic of learned step sizes: LSQ (Esser et al., ICLR 2020) and LSQ+.

With a step size ``s`` and the integers ``-Qn .. Qp``, LSQ rounds ``v`` to
``round(clip(v / s, -Qn, Qp)) * s`` (equations 1 and 2) and learns ``s`` from

    dv^/ds = -v/s + round(v/s)  if -Qn < v/s < Qp,   -Qn below,   Qp above     (equation 3)

times ``g = 1 / sqrt(N * Qp)`` (section 2.2), which makes the relative updates of a step size and
of the N weights or features that it rounds about equal. The gradient of ``v`` passes inside and
is zero outside (equation 5). LSQ+ (Bhalgat et al., CVPR Workshops 2020, equations 4 to 7) adds an
offset, whose gradient is one outside and zero inside. Here the offset is a whole number of
steps, as integer engines need it: ``zero_point = round(-offset / s)``, and equation 3 with
``Qn = zero_point`` gives LSQ+'s gradients once the zero point's own is passed on.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hast_lightning.core.slices import slices_of
from hast_lightning.quantization.ranges import SMALLEST_WIDTH
from hast_lightning.quantization.rounding import in_slices, quantize_dequantize, substitute

MAX_BITS = 8
SMALLEST_STEP = SMALLEST_WIDTH / 2**MAX_BITS
"""Step sizes that an optimizer has pushed below this are taken as this: they stay positive.

No range is so narrow that it starts below."""


class _LearnedRounding(torch.autograd.Function):
    """Round in the forward pass; equations 3 and 5 in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        bits: int,
        gradient: str,
        rounded: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point, rounded)
        ctx.bits, ctx.gradient = bits, gradient
        if rounded is None:
            return in_slices(x, scale, zero_point, bits)
        return rounded.view_as(rounded).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero_point, rounded = ctx.saved_tensors
        (upstream,) = gradients
        indices = slices_of(x) if scale.numel() == 1 else [...]
        clipped, learned = ctx.gradient == "clipped", ctx.needs_input_grad[2]
        of_x = torch.empty_like(x) if clipped and len(indices) > 1 else upstream
        of_scale, of_zero_point = torch.zeros_like(scale), torch.zeros_like(zero_point)
        ends = -zero_point * scale, (2**ctx.bits - 1 - zero_point) * scale
        if scale.dim() > 0:  # A channel whose scale is negative ends where others begin.
            ends = torch.minimum(*ends), torch.maximum(*ends)
        for index in indices:
            values, passed = x[index].float(), upstream[index].float()
            # Not what forward put out: the network may have added to that in place.
            if rounded is None:
                found = quantize_dequantize(values, scale, zero_point, ctx.bits)
            else:
                found = rounded[index]
            of_inside = _inside(passed, values, *ends)
            # (round(v/s) - v/s) * s inside, the end of the range outside.
            slope = (found - _inside(values, values, *ends)).mul_(passed)
            of_scale += slope.sum_to_size(scale.shape) / scale
            if learned:
                # What of the gradient did not pass inside.
                of_zero_point += (of_inside - passed).sum_to_size(zero_point.shape) * scale
            if clipped and len(indices) > 1:
                of_x[index] = of_inside
            elif clipped:
                of_x = of_inside.to(x.dtype)
        return of_x, of_scale, of_zero_point if learned else None, None, None, None


def _inside(values: Tensor, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``values`` where ``low < x < high``, else zero."""
    if x.is_cpu and low.numel() == 1:
        # Masks are not vectorized there; the gradient of hardtanh is, ten times faster.
        return torch.ops.aten.hardtanh_backward(values, x, low.item(), high.item())  # type: ignore[no-any-return]
    return values.masked_fill((x <= low) | (x >= high), 0)


class _ScaledGradient(torch.autograd.Function):
    """The value itself; its gradient times a constant."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float | Tensor) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


class _Positive(torch.autograd.Function):
    """At least ``SMALLEST_STEP``; what lies below may come back up and sink no further."""

    @staticmethod
    def forward(ctx: Any, step_size: Tensor) -> Tensor:
        ctx.save_for_backward(step_size)
        return step_size.clamp(min=SMALLEST_STEP)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (step_size,) = ctx.saved_tensors
        sinks = (step_size < SMALLEST_STEP) & (gradients[0] > 0)
        return gradients[0].masked_fill(sinks, 0)


def gradient_scale(values: int, highest: int) -> float:
    """Return ``g = 1 / sqrt(N * Qp)``.

    Args:
        values: N: weights that share a step size; of activations the values of one image, so
            that the batch size does not matter.
        highest: Qp, the highest integer.
    """
    return 1 / math.sqrt(values * highest)


def scale_gradient(value: Tensor, factor: float | Tensor) -> Tensor:
    """Return ``value``, whose gradient is multiplied by ``factor``, a number or of its shape."""
    result: Tensor = _ScaledGradient.apply(value, factor)
    return result


def in_units_of(unit: Tensor, multiple: Tensor, g: float) -> Tensor:
    """Return ``unit * multiple``, where ``multiple`` is learned and ``unit`` is not.

    Adam moves every parameter by about its learning rate, whatever the gradient's size: a step
    size of 0.004, of a weight at 8 bits, would be another one after a few steps at 1e-3. In units
    of what it was at first the rate is a relative one, the same for all widths (for which Jain et
    al., MLSys 2020, learn logarithms). The gradient is divided by the square of the unit, so that
    SGD does what it does in the paper, with ``g`` times the gradient of the product.

    Args:
        unit: Not zero.
        multiple: Of the same shape.
        g: LSQ's factor of the gradient.
    """
    return unit * scale_gradient(multiple, g / unit.square())


def positive(step_size: Tensor) -> Tensor:
    """Return ``step_size``, or ``SMALLEST_STEP`` where an optimizer has pushed it below."""
    result: Tensor = _Positive.apply(step_size)
    return result


def integer_zero_point(offset: Tensor, scale: Tensor, bits: int, include_zero: bool) -> Tensor:
    """Return ``round(-offset / scale)``, with a straight-through gradient.

    Args:
        offset: Lower end of the range; where it is exactly zero, as behind a ReLU, it stays.
        scale: Positive, of the same shape.
        bits: 2 to 8.
        include_zero: Keep the zero point among the grid's integers.
    """
    zero_point = -(offset * (offset != 0)) / scale
    if include_zero:
        zero_point = zero_point.clamp(0, 2**bits - 1)
    return substitute(zero_point, zero_point.detach().round())


def learned_fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    gradient: str = "clipped",
    rounded: Tensor | None = None,
) -> Tensor:
    """Quantize and dequantize ``x`` with LSQ's gradients of all three.

    Args:
        x: Any shape; computed in float32 and returned in the type of ``x``.
        scale: Broadcastable to ``x``; positive, or negative for a channel that its BatchNorm turns.
        zero_point: Integer-valued float, of the shape of ``scale``.
        bits: 2 to 8.
        gradient: Of ``x``: ``clipped`` to the inside of the range (equation 5), or
            ``pass_through``.
        rounded: The result, where it is known already.
    """
    result: Tensor = _LearnedRounding.apply(x, scale, zero_point, bits, gradient, rounded)
    return result
