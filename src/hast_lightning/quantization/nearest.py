"""Rounding to nearest, the usual."""

from __future__ import annotations

from torch import Tensor

from hast_lightning.core.part import part
from hast_lightning.quantization.axes import QuantizerSettings, Ranges, Rounding
from hast_lightning.quantization.fake_quant import WeightQuantizer


@part("rounding", "nearest")
class Nearest(Rounding):
    """Every weight is rounded to the nearest integer of its range."""

    def weight_quantizer(
        self, ranges: Ranges, bits: int, weight: Tensor, settings: QuantizerSettings
    ) -> WeightQuantizer:
        """Return the quantizer of the ranges as it is."""
        return ranges.weight_quantizer(bits, weight, settings)
