"""One range for all weights of a layer, as engines need it that have one scale a layer.

What such an engine holds are weights with the BatchNorm behind them folded in, so these share the
range (Jacob et al., CVPR 2018, section 3.2; Krishnamoorthi, 2018, section 3.1.1). The student keeps
its BatchNorms. With their factors ``f`` of now, channel by channel, and one scale ``s``,

    W_q = s / f * clip(round(W f / s))

so that folding gives ``f W_q``, integers times ``s``. Training moves the factors and so rounds the
weights anew; a correction moves means alone and leaves both. A BatchNorm that
multiplies by a negative number gives a channel a negative scale.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hast_lightning.graph.operations import BatchNorm
from hast_lightning.graph.tracing import SMALLEST_FACTOR


class FoldedFactors:
    """What a layer's outputs are multiplied by behind it, channel by channel.

    No module, since the BatchNorm is the student's.

    Args:
        layer: A convolution or linear layer, its weights output channels first.
        norm: The BatchNorm behind it, now and later; none: there is none.
    """

    def __init__(self, layer: nn.Module, norm: BatchNorm | None) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        self.norm, self._shape = norm, (len(weight), *(1,) * (weight.dim() - 1))

    def fold(self, weight: Tensor) -> Tensor:
        """Return ``weight`` with its factors, no gradient; a channel that ends there is zero."""
        return weight.detach().float() * self._now(weight.device)

    def unfold(self, scale: Tensor) -> Tensor:
        """Return the scale of each channel, (out_channels, 1, ...), of that of folded weights."""
        factors = self._now(scale.device)
        return scale / torch.where(factors == 0, torch.ones_like(factors), factors)

    @torch.no_grad()
    def _now(self, device: torch.device) -> Tensor:
        if self.norm is None:
            return torch.ones(self._shape, device=device)
        # In float32, which every device has; files are folded in float64.
        assert self.norm.running_var is not None
        found = (self.norm.running_var.float() + self.norm.eps).rsqrt()
        if self.norm.weight is not None:
            found = found * self.norm.weight.float()
        return found.masked_fill(found.abs() < SMALLEST_FACTOR, 0).view(self._shape)
