"""Learned rounding: every weight goes to the integer below or above it, whichever serves better.

With a fixed base ``B = floor(w / s0)`` and a parameter ``V`` of the shape of the weight,

    h(V) = clip(1.2 * sigmoid(V) - 0.1, 0, 1)        w_q = s * (clip(B + h + z, 0, 2^n - 1) - z)

starts at ``h = w / s0 - B``, so that nothing is rounded at first, and is driven to 0 or 1 by
``sum of 1 - |2 h - 1|^b`` with a falling ``b``. Rounded hard, ``h`` is 1 where ``V >= 0``.

Source: AdaRound (Nagel et al., ICML 2020, equations 21 to 24); as the base does not depend on the
scale, both are learned together in GENIE (Jeon et al., CVPR 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hast_lightning.core.part import part
from hast_lightning.quantization.axes import QuantizerSettings, Ranges, Rounding
from hast_lightning.quantization.fake_quant import WeightQuantizer
from hast_lightning.quantization.ranges import AffineParameters

STRETCH = 1.2
"""zeta - gamma: the sigmoid is stretched beyond [0, 1], so that both ends are reached."""
SHIFT = -0.1


def soft_bit(v: Tensor) -> Tensor:
    """Return ``h(V)``, between 0 and 1, of the shape of ``v``."""
    return (STRETCH * torch.sigmoid(v) + SHIFT).clamp(0, 1)


def first_v(fraction: Tensor) -> Tensor:
    """Return the ``V`` whose soft bit is ``fraction``, in [0, 1) and of the same shape."""
    return -torch.log(STRETCH / (fraction - SHIFT) - 1)


def rounding_loss(v: Tensor, b: float) -> Tensor:
    """Return ``sum of 1 - |2 h - 1|^b``, a scalar: zero where every bit is decided."""
    return (1 - (2 * soft_bit(v) - 1).abs().pow(b)).sum()


def undecided(v: Tensor) -> Tensor:
    """Return the mean of ``min(h, 1 - h)``, a scalar: 0 where every bit is decided, 0.5 at most.

    What is undecided at the end of a unit, hard rounding changes: the unit had too few iterations,
    or too little that drives its bits to 0 and 1.
    """
    bit = soft_bit(v)
    return torch.minimum(bit, 1 - bit).mean()


class AdaptiveWeightQuantizer(WeightQuantizer):
    """Rounds each weight up or down as its parameter says, per output channel.

    Args:
        bits: 2 to 8.
        weight: What it is for, (out_channels, ...): scales and bases are those of this weight.
        ranges: Finds the scale and zero point that it starts from.
    """

    base: Tensor
    zero_point: Tensor
    first_scale: Tensor

    def __init__(self, bits: int, weight: Tensor, ranges: WeightQuantizer) -> None:
        super().__init__(
            bits,
            ranges.include_zero,
            symmetric=ranges.grid.symmetric,
            find=ranges.find,
            gradient=ranges.gradient,
        )
        weight = weight.detach().float()
        scale, zero_point = (each.detach().clone() for each in ranges.parameters_of(weight))
        base = torch.floor(weight / scale)
        self.register_buffer("base", base)
        self.register_buffer("zero_point", zero_point)
        self.register_buffer("first_scale", scale)
        self.relative_scale = nn.Parameter(torch.ones_like(scale))
        self.v = nn.Parameter(first_v(weight / scale - base))
        # Soft only while its unit is rebuilt.
        self.soft = False

    @torch.no_grad()
    def change_bits(self, bits: int, weight: Tensor) -> None:
        """Begin anew with other bits: scales, bases and roundings of ``weight`` as it is."""
        self.set_bits(bits)
        weight = weight.float()
        scale, zero_point = super().parameters_of(weight)
        base = torch.floor(weight / scale)
        values = (base, zero_point, scale, torch.ones_like(scale), first_v(weight / scale - base))
        owned = (self.base, self.zero_point, self.first_scale, self.relative_scale, self.v)
        for own, value in zip(owned, values, strict=True):
            own.copy_(value)

    @property
    def scale(self) -> Tensor:
        """Return the scale as it is now, (out_channels, 1, ...)."""
        return self.first_scale * self.relative_scale

    def parameters_of(self, weight: Tensor) -> AffineParameters:
        """Return scale and zero point; the weight itself does not matter."""
        return AffineParameters(self.scale.detach(), self.zero_point)

    def integers(self) -> Tensor:
        """Return the integers, soft or hard, of the shape of the weight."""
        bit = soft_bit(self.v) if self.soft else (self.v >= 0).to(self.v.dtype)
        return (self.base + bit + self.zero_point).clamp(0, 2**self.bits - 1)

    def rounded(self, weight: Tensor) -> Tensor:
        """Return the weight on its grid, without gradient."""
        return self.forward(weight).detach()

    def hold(self, weight: Tensor | None) -> None:
        """Do nothing: what is rounded does not depend on the weight."""

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weight, differentiable in bits and scale."""
        return self.scale * (self.integers() - self.zero_point)

    @torch.no_grad()
    def settled(self, weight: Tensor) -> None:
        """Write the hard weight into ``weight``, so that every reader of it sees the same."""
        weight.copy_(self.forward(weight))


@part("rounding", "adaptive")
class Adaptive(Rounding):
    """Weights are rounded up or down as a stage ``reconstruct`` learns it (AdaRound, GENIE).

    Before that they are rounded to the nearest integer. Source: Nagel et al., ICML 2020; Jeon et
    al., CVPR 2023.
    """

    def weight_quantizer(
        self, ranges: Ranges, bits: int, weight: Tensor, settings: QuantizerSettings
    ) -> WeightQuantizer:
        """Return a quantizer with a parameter for each weight's rounding."""
        return AdaptiveWeightQuantizer(
            bits, weight, ranges.weight_quantizer(bits, weight, settings)
        )
