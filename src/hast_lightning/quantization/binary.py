"""Weights of one bit: a sign, and one magnitude per output channel.

    linear layers: a sign(w - mean(w))        convolutions: a sign(w)        a = mean |w|

with the mean over each output channel's weights, and ``sign(0) = 1``, since ``torch.sign`` would
give a third value. The gradient passes where ``|w| <= 1``.

Source: released code of BinaryViT (Le and Li, CVPR Workshops 2023), after XNOR-Net (Rastegari et
al., ECCV 2016); its binary activations are not here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hast_lightning.quantization.fake_quant import Rounded, WeightQuantizer
from hast_lightning.quantization.ranges import SMALLEST_WIDTH, AffineParameters

LINEAR_DIMENSIONS = 2


class BinaryWeightQuantizer(WeightQuantizer):
    """Weights of two values for each output channel, ``-a`` and ``a``.

    On the grid of the integers 0 and 1 the scale is ``2 a`` and the zero point one half.
    """

    def __init__(self) -> None:
        super().__init__(1)

    def change_bits(self, bits: int, weight: Tensor) -> None:
        """Refuse other bits, for which there is another quantizer.

        Raises:
            ValueError: they are not 1.
        """
        if bits != 1:
            raise ValueError(f"weights of one bit cannot get {bits} bits")

    def parameters_of(self, weight: Tensor) -> AffineParameters:
        """Return ``2 mean |w|`` of each output channel, (out_channels, 1, ...), and one half."""
        shape = (-1, *(1,) * (weight.dim() - 1))
        magnitude = weight.detach().float().abs().flatten(1).mean(dim=1).view(shape)
        scale = 2 * magnitude.clamp_min(SMALLEST_WIDTH)
        return AffineParameters(scale, torch.full_like(scale, 0.5))

    def integers_of(self, weight: Tensor) -> Tensor:
        """Return 0 and 1, float32, of the shape of ``weight``."""
        weight = weight.detach().float()
        if weight.dim() == LINEAR_DIMENSIONS:
            weight = weight - weight.mean(dim=1, keepdim=True)
        return (weight >= 0).float()

    @torch.no_grad()
    def _round(self, weight: Tensor) -> Rounded:
        scale, zero_point = self.parameters_of(weight)
        return Rounded((self.integers_of(weight) - zero_point) * scale, weight.abs() <= 1)
