"""Bit widths of weights and activations, in numbers and in words; 32 is floating point."""

from __future__ import annotations

import re
from typing import NamedTuple

FLOAT_BITS = 32
"""The width of what is not quantized."""
NAME_WITH_BITS = re.compile(
    r"(?P<head>.+)_w(?P<weights>[2-8]|32)a(?P<activations>[2-8]|32)(?P<tail>_.+)?"
)
"""Names of recipes that say bits, such as ``digits_w3a3_sgd``."""


class Widths(NamedTuple):
    """Bits of weights and of activations, 2 to 8 each, or 32 for floating point."""

    weights: int
    activations: int

    def __str__(self) -> str:
        """Return ``W4A8``; ``W4, activations in float`` where only one of them is quantized."""
        if self.weights == self.activations == FLOAT_BITS:
            return "float"
        if self.activations == FLOAT_BITS:
            return f"W{self.weights}, activations in float"
        if self.weights == FLOAT_BITS:
            return f"A{self.activations}, weights in float"
        return self.short

    @property
    def unlike_8(self) -> bool:
        """Return whether first and last layers of 8 bits differ from the others."""
        return bool(set(self) - {8, FLOAT_BITS})

    @property
    def short(self) -> str:
        """Return ``W4A8`` whatever the numbers, for tags, file names and axes."""
        return f"W{self.weights}A{self.activations}"
