"""One range for all weights of a layer, as engines need it that have one scale a layer.

What such an engine holds are weights with the BatchNorm behind them folded in, so these share the
range (Jacob et al., CVPR 2018, section 3.2; Krishnamoorthi, 2018, section 3.1.1). The student keeps
its BatchNorms. With their factors ``f`` of now, channel by channel, and one scale ``s``,

    W_q = s / f * clip(round(W f / s))

whatever a correction or training makes of the BatchNorm. Folding gives ``f W_q``, integers times
``s``. A BatchNorm that multiplies by a negative number gives a channel a negative scale.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hast_lightning.graph.operations import BatchNorm
from hast_lightning.graph.tracing import batch_norm_affine

SMALLEST_FACTOR = 1e-20
"""A channel that a BatchNorm multiplies by less is zero in any file; it is rounded as it is."""


class FoldedFactors:
    """What a layer's outputs are multiplied by behind it.

    No module, since the BatchNorm is the student's.

    Args:
        layer: A convolution or linear layer, its weights output channels first.
        norm: The BatchNorm behind it, now and later; none: there is none.
    """

    def __init__(self, layer: nn.Module, norm: BatchNorm | None) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        self._norm, self._shape = norm, (len(weight), *(1,) * (weight.dim() - 1))

    def on(self, device: torch.device) -> Tensor:
        """Return the factors, (out_channels, 1, ...), float32, without gradient; none is zero."""
        if self._norm is None:
            return torch.ones(self._shape, device=device)
        found = batch_norm_affine(self._norm)[0].detach()
        found = torch.where(found.abs() < SMALLEST_FACTOR, torch.ones_like(found), found)
        return found.float().view(self._shape)
