"""Mixtures of two images of a batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hast_lightning.core.batch import Batch
from hast_lightning.core.checks import require_range
from hast_lightning.core.network import Network
from hast_lightning.core.part import part
from hast_lightning.core.transform import Transform


def mixed(values: Tensor, partners: Tensor, shares: Tensor) -> Tensor:
    """Return ``share * value + (1 - share) * partner``, all (N, ...) but ``shares`` (N,)."""
    shares = shares.view(-1, *[1] * (values.dim() - 1)).to(values.dtype)
    return torch.lerp(partners, values, shares)


@part("transform", "mix_pairs")
class MixPairs(Transform):
    """Mixes every image with another one of its batch, drawn at random (mixup).

    ``x' = s x + (1 - s) x_partner`` with ``s`` the larger of the two shares, of which one is drawn
    from Beta(alpha, alpha), for each image anew.

    Source: mixup (Zhang et al., ICLR 2018).
    """

    alpha: float = 1.0
    """Of the Beta distribution that shares are drawn from; 1: uniform."""
    labels: bool = False
    """Mix the targets, too, which are then soft."""
    easy_only: bool = False
    """Leave images with soft targets as they are, and mix the others among each other."""

    def __post_init__(self) -> None:
        require_range("alpha", self.alpha, 0, open_minimum=True)

    def bind(self, teacher: Network, student: Network) -> None:
        """Remember the number of classes."""
        self._classes = teacher.pretrained.num_classes

    def forward(self, batch: Batch, gradient: Tensor | None = None) -> Batch:
        """Return the mixed batch."""
        inputs, targets = batch.inputs, batch.targets
        count, device = len(inputs), inputs.device
        partner = torch.arange(count, device=device)
        chosen = partner
        if self.easy_only and targets is not None and targets.dim() == 2:
            chosen = partner[targets.max(dim=1).values == 1]
        # Not into the tensor that was indexed with.
        partner = partner.clone()
        partner[chosen] = chosen[torch.randperm(len(chosen), device=device)]
        drawn = torch.distributions.Beta(self.alpha, self.alpha).sample((count,)).to(device)
        shares = torch.maximum(drawn, 1 - drawn)
        batch = batch._replace(inputs=mixed(inputs, inputs[partner], shares))
        if not self.labels or targets is None:
            return batch
        if targets.dim() == 1:
            targets = F.one_hot(targets, self._classes).float()
        return batch._replace(targets=mixed(targets, targets[partner], shares))
