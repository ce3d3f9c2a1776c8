"""After TDG (Luo et al., TCSVT 2024): images that the student has not come close to yet.

Only the abstract is public: the smaller the discrepancy of teacher and student on a sample, the
stronger it is pushed, by a Gaussian margin; and synthetic images are interpolated over time. The
formulas here are ours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hast_lightning.core.batch import Batch, Needs, Seen, weighted_mean
from hast_lightning.core.checks import require_range
from hast_lightning.core.network import Network
from hast_lightning.core.part import part
from hast_lightning.core.term import Term
from hast_lightning.core.transform import Transform


def discrepancy(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Return the mean absolute difference of logits (N, classes), each without its mean, (N,)."""
    difference = teacher_logits.float() - student_logits.float()
    return (difference - difference.mean(dim=1, keepdim=True)).abs().mean(dim=1)


@part("term", "gaussian_margin")
class GaussianMargin(Term):
    """Pushes teacher and student apart on images, most where they are closest.

    ``-mean exp(-d^2 / (2 width^2)) d`` of the discrepancy ``d`` of their logits; the factor has no
    gradient, so that it alone says how strong a push is: from 1 at no discrepancy to 0.

    Source: the abstract of TDG (Luo et al., TCSVT 2024); the formula is ours.
    """

    width: float = 1.0
    """Discrepancy of logits at which a push has 0.61 of its strength."""

    title = "Discrepancy within a Gaussian margin"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("width", self.width, 0, open_minimum=True)

    def bind(self, teacher: Network, student: Network) -> Needs:
        """Ask for the student's logits."""
        return Needs(student=())

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss, which is not positive."""
        assert seen.student is not None
        found = discrepancy(seen.teacher.logits, seen.student.logits)
        strength = torch.exp(-found.detach().square() / (2 * self.width**2))
        return -weighted_mean(strength * found, seen.batch.weights)


@part("transform", "blend_over_time")
class BlendOverTime(Transform):
    """Blends each image with the one in its place a step ago: ``s x + (1 - s) x_former``.

    ``s`` is uniform in ``[lowest, 1]``, drawn for each image. The targets stay. Where the former
    batch had another size, and in the first step, images stay as they are.

    Source: the abstract of TDG (Luo et al., TCSVT 2024); shares and pairs are ours.
    """

    lowest: float = 0.5
    """Least share of the image itself."""

    def __post_init__(self) -> None:
        require_range("lowest", self.lowest, 0, 1)

    def bind(self, teacher: Network, student: Network) -> None:
        """Begin without a former batch."""
        self._former: Tensor | None = None

    def forward(self, batch: Batch, gradient: Tensor | None = None) -> Batch:
        """Return the blended batch."""
        images, former = batch.inputs, self._former
        self._former = images.detach()
        if former is None or former.shape != images.shape:
            return batch
        drawn = torch.rand(len(images), *[1] * (images.dim() - 1), device=images.device)
        shares = (self.lowest + (1 - self.lowest) * drawn).to(images.dtype)
        former = former.to(images.device, images.dtype)
        return batch._replace(inputs=torch.lerp(former, images, shares))

    def get_extra_state(self) -> dict[str, Any]:
        """Return the former batch, for ``state_dict``."""
        return {"former": self._former}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` returned."""
        self._former = state["former"]
