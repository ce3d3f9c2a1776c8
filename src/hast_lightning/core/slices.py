"""Slices of a large tensor, so that what is computed on the way stays in a processor's cache.

Arithmetic that is element by element spends its time on moving values between memory and the
processor. On a CPU several operations on one slice after the other find theirs in the cache, and
a copy in a wider type never reaches memory.
"""

from __future__ import annotations

from types import EllipsisType

import torch
from torch import Tensor

CACHED = 2**17
"""Values of a slice; in float32 they take half a megabyte."""
Slice = slice | EllipsisType


def slices_of(values: Tensor) -> list[Slice]:
    """Return indices into the first dimension that make up all of it, in order.

    There is one index for the whole where slices bring nothing: for few values, on other devices,
    and under ``torch.compile``, which joins operations itself.

    Args:
        values: Of any shape; usually (N, C, ...).
    """
    if torch.compiler.is_compiling() or values.device.type != "cpu":
        return [...]
    count = values.numel()
    if count <= CACHED:
        return [...]
    images = len(values)
    step = max(1, CACHED * images // count)
    return [slice(first, first + step) for first in range(0, images, step)]


def taken(values: Tensor, index: Slice) -> Tensor:
    """Return what belongs to a slice of values that broadcast: all, where there is one for all."""
    return values if values.dim() == 0 or len(values) == 1 else values[index]
