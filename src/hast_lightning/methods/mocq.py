"""MOCQ (Fan et al., TPAMI, doi 10.1109/TPAMI.2024.3521589): how strongly weights go to the grid.

The distance itself is the term ``convex``. The authors train from scratch on data, with one range
for all layers; here it is an addition to any method that trains a student.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, fx

from hast_lightning.core.checks import require_range
from hast_lightning.core.part import part
from hast_lightning.core.stage import Bench, Hook, Stepper
from hast_lightning.errors import ConfigurationError
from hast_lightning.terms.convex import Convex


def balance(norm: float, other: float) -> float:
    """Return ``10^(round(log10 norm) - round(log10 other))``; 0 where one of both is not positive.

    Times this, what has the norm ``other`` is of the order of magnitude of ``norm``.
    """
    if not (0 < norm < math.inf and 0 < other < math.inf):
        return 0.0
    return 10.0 ** (round(math.log10(norm)) - round(math.log10(other)))


@part("hook", "grid_pull")
class GridPull(Hook):
    """Adds the gradient of the distance from the grid, ever stronger beside that of the loss.

    Nothing before ``start``. From there to ``end`` the gradient of the term ``convex`` is brought
    to the order of magnitude of the loss's, and multiplied by ``first``, ten times as much in each
    of ``phases`` equal stretches. Both norms are those of all weights that ``convex`` counts.

    Source: MOCQ (Fan et al., TPAMI), released code: epochs 50 to 300 of 350, from 1e-4 in five
    phases. Norms are of the first layer alone there, and the last 50 epochs have 1e-3 times the sum
    of distances, unbalanced; here the last phase goes on.
    """

    steps: int = 29400
    """Steps of the stage, which the phases are shares of."""
    start: float = 1 / 7
    """Share of the steps before the first phase."""
    end: float = 6 / 7
    """Share of the steps at whose end the last phase would be over."""
    first: float = 1e-4
    """Length of the added gradient in the first phase, beside that of the loss."""
    phases: int = 5
    """Stretches, each with ten times the length of the one before."""

    done: ClassVar[Tensor]

    def __post_init__(self) -> None:
        require_range("steps", self.steps, 0)
        require_range("start", self.start, 0, 1)
        require_range("end", self.end, 0, 1)
        require_range("first", self.first, 0)
        require_range("phases", self.phases, 1)
        if self.start >= self.end:
            raise ConfigurationError(f"start={self.start:g} must be less than end={self.end:g}")

    def bind(self, bench: Bench) -> None:
        """Find the layers, and begin to count steps.

        Raises:
            ConfigurationError: there is no layer between the first and the last.
        """
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))
        self._convex = Convex()
        self._convex.bind(bench.teacher, bench.learner)

    def strength(self, done: int) -> float:
        """Return what the balanced gradient is multiplied by after so many steps."""
        place = (done / max(self.steps, 1) - self.start) / (self.end - self.start)
        if place < 0:
            return 0.0
        # Not the last digit of a product decides when a phase begins.
        return self.first * 10.0 ** min(math.floor(self.phases * place + 1e-9), self.phases - 1)

    def forward(self, student: fx.GraphModule, stepper: Stepper, rate: float) -> dict[str, float]:
        """Add to the gradients.

        Args:
            student: With its gradients, unscaled and averaged over ranks.
            stepper: Its optimizer.
            rate: Learning rate of this step.

        Returns:
            The distance from the grid, and what its gradient was multiplied by.
        """
        strength = self.strength(int(self.done))
        self.done.add_(1)
        weights = [layer.weight for layer in self._convex.layers if layer.weight.requires_grad]
        if not strength or not weights:
            return {}
        with torch.enable_grad():
            distance = self._convex.distance()
            pulls = torch.autograd.grad(distance, weights)
        own = [weight.grad for weight in weights if weight.grad is not None]
        factor = strength * balance(_norm(own), _norm(pulls))
        for weight, pull in zip(weights, pulls, strict=True):
            if weight.grad is not None:
                weight.grad.add_(pull, alpha=factor)
        return {"grid_distance": float(distance.detach()), "grid_pull": factor}


def _norm(gradients: tuple[Tensor, ...] | list[Tensor]) -> float:
    if not gradients:
        return 0.0
    return float(torch.stack([gradient.float().norm() for gradient in gradients]).norm())
