"""Affine quantize-dequantize and its straight-through gradients.

The grid of ``k`` bits is ``scale * (q - zero_point)`` with integers
``q`` in ``[0, 2^k - 1]``; ``q = clamp(round(x / scale) + zero_point)``, rounding
half to even, which is also what ONNX's QuantizeLinear computes. Everything is
float32: integers of up to 8 bits are exact in it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hast_lightning.core.slices import slices_of


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Return integers in ``[0, 2^bits - 1]``, as float32, of the shape of ``x``.

    ``scale`` and ``zero_point`` broadcast against ``x``: scalars, or one value per channel.
    """
    return (x / scale).round_().add_(zero_point).clamp_(0, 2**bits - 1)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Return the real values ``scale * (q - zero_point)`` of integers ``q``."""
    return (q - zero_point).mul_(scale)


def quantize_dequantize(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Round ``x`` to the grid; no gradient is defined.

    The same values as ``dequantize(quantize(x))``, in fewer passes over memory.
    """
    q = (x / scale).round_()
    # Not torch.clamp: with tensors as bounds it is ten times slower on a CPU.
    torch.maximum(q, -zero_point, out=q)
    torch.minimum(q, 2**bits - 1 - zero_point, out=q)
    return q.mul_(scale)


def in_slices(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Return ``quantize_dequantize`` in the type of ``x``, computed in float32 slice by slice."""
    slices = slices_of(x)
    if scale.numel() > 1 or len(slices) == 1:
        return quantize_dequantize(x.float(), scale, zero_point, bits).to(x.dtype)
    rounded = torch.empty_like(x)
    for images in slices:
        rounded[images] = quantize_dequantize(x[images].float(), scale, zero_point, bits)
    return rounded


class _PassThrough(torch.autograd.Function):
    """Round in the forward pass, identity in the backward pass (Bengio et al., 2013)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
        return in_slices(x, scale, zero_point, bits)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return gradients[0], None, None, None


class _Clipped(torch.autograd.Function):
    """Round in the forward pass; the gradient passes only where ``x`` is inside the grid."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
        q = (x / scale).round_().add_(zero_point)
        ctx.save_for_backward((q >= 0) & (q <= 2**bits - 1))
        return dequantize(q.clamp_(0, 2**bits - 1), scale, zero_point)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None


class _Substitute(torch.autograd.Function):
    """Give ``value`` forward and the gradient to ``parameter`` backward, where it may pass."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, value: Tensor, passes: Tensor | None) -> Tensor:
        ctx.passes = passes
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        passed = gradients[0] if ctx.passes is None else gradients[0] * ctx.passes
        return passed, None, None


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, gradient: str = "pass_through"
) -> Tensor:
    """Quantize and dequantize ``x`` with a straight-through gradient.

    Args:
        x: Any shape; computed in float32 and returned in the type of ``x``.
        scale: Positive, broadcastable to ``x``.
        zero_point: Integer-valued float, broadcastable to ``x``.
        bits: 2 to 8.
        gradient: ``pass_through`` or ``clipped`` to the representable range.
    """
    result: Tensor
    if gradient == "clipped":
        result = _Clipped.apply(x.float(), scale, zero_point, bits)
        return result.to(x.dtype)
    result = _PassThrough.apply(x, scale, zero_point, bits)
    return result


def is_inside(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Return where the clipped gradient passes: values that are rounded without clamping."""
    q = (x / scale).round_().add_(zero_point)
    return q.ge(0).logical_and_(q <= 2**bits - 1)


def substitute(parameter: Tensor, value: Tensor, passes: Tensor | None = None) -> Tensor:
    """Return ``value``, whose gradient goes to ``parameter``.

    Args:
        parameter: What is learned.
        value: What stands for it, of the same shape.
        passes: Where the gradient passes (boolean, of the same shape); none: everywhere.
    """
    result: Tensor = _Substitute.apply(parameter, value, passes)
    return result
