"""PSAQ-ViT (Li et al., ECCV 2022): pictures whose patches a transformer tells apart."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from hast_lightning.core.batch import Needs, Seen
from hast_lightning.core.checks import require_range
from hast_lightning.core.network import Network
from hast_lightning.core.part import part
from hast_lightning.core.term import Term
from hast_lightning.graph.attention_nodes import patches, require_attentions

SMALLEST_DENSITY = 1e-4
"""Added to densities before the logarithm."""


def patch_similarities(output: Tensor, *, self_pairs: bool = True) -> Tensor:
    """Return cosine similarities of all pairs of patches, (N, pairs), float32.

    Args:
        output: What an attention puts out, (N, heads, tokens, d); heads are averaged.
        self_pairs: Keep the pairs of a patch with itself, whose similarity is 1.
    """
    mean = F.normalize(patches(output).float().mean(dim=1), dim=-1)
    with torch.autocast(mean.device.type, enabled=False):
        similarity = mean @ mean.transpose(-2, -1)
    if self_pairs:
        return similarity.flatten(1)
    others = ~torch.eye(similarity.shape[1], dtype=torch.bool, device=similarity.device)
    return similarity[:, others]


def kernel_entropy(values: Tensor, points: int = 10, bandwidth: float = 0.01) -> Tensor:
    """Return the differential entropy of each row, by a Gaussian kernel density; (N,).

    ``- integral of (p + 1e-4) log(p + 1e-4)`` by the trapezoidal rule over points equally spaced
    between the batch's minimum and maximum, which have no gradient. It may be negative.

    Source: released code of PSAQ-ViT (Li et al., ECCV 2022).

    Args:
        values: (N, n).
        points: Where the density is estimated; at the released 10 most values lie between them.
        bandwidth: Deviation of the kernel.
    """
    low, high = values.detach().aminmax()
    grid = low + (high - low) * torch.linspace(0, 1, points, device=values.device)
    away = (grid[None, :, None] - values[:, None, :]) / bandwidth
    kernel = torch.exp(-0.5 * away.square()) / (bandwidth * math.sqrt(2 * math.pi))
    density = kernel.mean(dim=2) + SMALLEST_DENSITY
    return torch.trapezoid(-density * density.log(), grid, dim=1)


@part("term", "patch_entropy")
class PatchEntropy(Term):
    """``- sum over attentions of H``, the entropy of similarities between patches.

    Source: PSAQ-ViT (Li et al., ECCV 2022), equations 5 to 8, and its released code.
    """

    points: int = 10
    """Where densities are estimated."""
    bandwidth: float = 0.01
    """Deviation of the kernel."""
    self_pairs: bool = True
    """Count the pairs of a patch with itself, as the released code does."""

    title = "Patch similarity entropy"
    by_sample = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("points", self.points, 2)
        require_range("bandwidth", self.bandwidth, 0, open_minimum=True)

    def bind(self, teacher: Network, student: Network) -> Needs:
        """Find the attentions.

        Raises:
            ModelError: there are none over a square grid of patches.
        """
        found = require_attentions(teacher, "patch_entropy", outputs=True)
        self._nodes = tuple(each.output for each in found)
        self.name_parts(self._nodes)
        return Needs(teacher=self._nodes)

    def forward(self, seen: Seen) -> Tensor:
        """Return the loss of each attention, (attentions,): minus the mean over pictures."""
        entropies = [
            kernel_entropy(
                patch_similarities(seen.teacher.values[name], self_pairs=self.self_pairs),
                self.points,
                self.bandwidth,
            ).mean()
            for name in self._nodes
        ]
        return -torch.stack(entropies)
