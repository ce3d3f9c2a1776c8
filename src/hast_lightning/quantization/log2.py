"""Powers of two for values between zero and one: the probabilities of a softmax.

Most of them are close to zero, where a uniform grid of few bits has nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hast_lightning.quantization.fake_quant import ActivationMode, ActivationQuantizer
from hast_lightning.quantization.rounding import substitute


def log2_quantize(x: Tensor, bits: int) -> Tensor:
    """Return ``2^-q`` with ``q = round(-log2 x)``, and 0 where ``q >= 2^bits``; float32.

    Source: FQ-ViT (Lin et al., IJCAI 2022), released code. Beside its ``2^bits`` powers of two
    it has the zero, as there.

    Args:
        x: Any shape, in [0, 1]; what is above 1 is taken as 1.
        bits: 2 to 8.
    """
    q = torch.round(-torch.log2(x.float().clamp(0, 1)))
    return torch.where(q >= 2**bits, torch.zeros_like(q), torch.exp2(-q))


class Log2Quantizer(ActivationQuantizer):
    """Rounds to powers of two (see :func:`log2_quantize`); there is no range to be calibrated.

    The gradient passes straight through.
    """

    def __init__(self, bits: int, **options: Any) -> None:
        super().__init__(bits, **options)
        self.scale.fill_(1)

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Quantize from now on, whatever the range."""
        self.mode = ActivationMode.QUANTIZE

    def quantize(self, x: Tensor) -> Tensor:
        """Quantize and dequantize ``x``, any shape."""
        with torch.no_grad():
            value = log2_quantize(x, self.bits).to(x.dtype)
        return substitute(x, value)

    def forward(self, x: Tensor) -> Tensor:
        """Pass through or quantize ``x`` (any shape), as the mode says."""
        return self.quantize(x) if self.mode is ActivationMode.OBSERVE else super().forward(x)
