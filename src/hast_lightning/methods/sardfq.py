"""What is known of SARDFQ (Zhong et al., ICCV 2025): attention towards random priors.

From notes by others; its code could not be had. How priors are drawn is ours.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from hast_lightning.core.batch import Batch, Needs, Seen
from hast_lightning.core.checks import require_range
from hast_lightning.core.network import Network
from hast_lightning.core.part import part
from hast_lightning.core.term import Term
from hast_lightning.graph.attention_nodes import prefixes, require_attentions

NARROWEST, WIDEST = 0.05, 0.3
"""Deviations of a Gaussian, as shares of the grid's side."""
MOST_GAUSSIANS = 5


def attention_priors(shape: tuple[int, ...], side: int, generator: torch.Generator) -> Tensor:
    """Ours: return random mixtures of Gaussians over a grid, (*shape, side * side), each sum 1.

    Each has 1 to 5 Gaussians (the paper's number); centers are uniform over the grid, deviations
    uniform between 0.05 and 0.3 of its side, weights uniform.

    Args:
        shape: Leading dimensions.
        side: Patches to a side of the grid.
        generator: Of the CPU, which they are drawn on.
    """

    def drawn() -> Tensor:
        return torch.rand(*shape, MOST_GAUSSIANS, generator=generator)

    count = torch.randint(1, MOST_GAUSSIANS + 1, (*shape, 1), generator=generator)
    weight = drawn() * (torch.arange(MOST_GAUSSIANS) < count)
    deviation = (NARROWEST + (WIDEST - NARROWEST) * drawn())[..., None]
    places = (torch.arange(side) + 0.5) / side
    x, y = (
        torch.exp(-0.5 * ((places - drawn()[..., None]) / deviation).square()) for _ in range(2)
    )
    maps = (weight[..., None, None] * y[..., :, None] * x[..., None, :]).sum(dim=-3).flatten(-2)
    return maps / maps.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)


def patch_attention(probabilities: Tensor) -> Tensor:
    """Return how much each head attends to patches, (N, heads, patches), each sum 1; float32.

    The class token's row; without a class token the mean over queries. What falls on tokens before
    the patches is left out, and the rest is brought to a sum of 1 (ours: a prior has that sum).

    Args:
        probabilities: (N, heads, tokens, tokens).
    """
    first = prefixes(probabilities.shape[2]) or 0
    values = probabilities.float()
    rows = values[:, :, 0, first:] if first else values.mean(dim=2)
    return rows / rows.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)


@part("term", "attention_prior")
class AttentionPrior(Term):
    """``sum over the upper half of attentions of l / L MSE(attention, prior)``, priors random.

    Priors are drawn once for the pictures that are being made, and anew when they are finished.

    Source: SARDFQ (Zhong et al., ICCV 2025), from notes by others; see :func:`attention_priors`.
    """

    title = "Attention prior"
    seed: ClassVar[Tensor]

    def __post_init__(self) -> None:
        require_range("weight", self.weight, 0)
        self._drawn: tuple[Any, Tensor] | None = None

    def bind(self, teacher: Network, student: Network) -> Needs:
        """Find the attentions, and draw a seed, which is in checkpoints.

        Raises:
            ModelError: there are none over a square grid of patches.
        """
        found = require_attentions(teacher, "attention_prior")
        numbered = list(enumerate(found, start=1))[len(found) // 2 :]
        self._weights = {each.probabilities: n / len(found) for n, each in numbered}
        self.name_parts(tuple(self._weights))
        self.register_buffer("seed", torch.randint(2**31, ()))
        return Needs(teacher=tuple(self._weights), finished=True)

    def finished(self, batch: Batch) -> None:
        """Draw other priors for the pictures that come next."""
        self.seed.random_(2**31)

    def forward(self, seen: Seen) -> Tensor:
        """Return the loss of each attention, (attentions,)."""
        attention = {name: patch_attention(seen.teacher.values[name]) for name in self._weights}
        priors = self._priors([tuple(each.shape) for each in attention.values()])
        return torch.stack(
            [
                weight * (attention[name] - prior.to(attention[name])).square().mean()
                for (name, weight), prior in zip(self._weights.items(), priors, strict=True)
            ]
        )

    def _priors(self, shapes: list[tuple[int, ...]]) -> list[Tensor]:
        """Return a prior for each attention, the same until the seed changes."""
        key = (int(self.seed), shapes)
        if self._drawn is None or self._drawn[0] != key:
            generator = torch.Generator().manual_seed(key[0])
            maps = [
                attention_priors(shape[:-1], math.isqrt(shape[-1]), generator) for shape in shapes
            ]
            self._drawn = key, maps  # type: ignore[assignment]
        assert self._drawn is not None
        return list(self._drawn[1])
