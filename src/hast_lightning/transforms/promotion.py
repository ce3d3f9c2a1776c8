"""Sample difficulty promotion: make every image harder for the student as it is now."""

from __future__ import annotations

from torch import Tensor

from hast_lightning.core.batch import Batch
from hast_lightning.core.checks import require_range
from hast_lightning.core.network import Network
from hast_lightning.core.part import part
from hast_lightning.core.transform import Transform


def promote(
    images: Tensor, image_gradient: Tensor, eps: float, spread: Tensor | None = None
) -> Tensor:
    """Return ``x + eps * spread * sign(dL/dx)``: one step up the student's loss.

    Source: HAST (Li et al., CVPR 2023), sample difficulty promotion. The gradient is that
    of the student's loss through both networks.

    Args:
        images: (N, C, H, W), normalized.
        image_gradient: The gradient of the student's loss with respect to ``images``.
        eps: Length of the step in normalized pixel units.
        spread: Deviation of each value where it is not 1, broadcast to an image.

    Returns:
        (N, C, H, W), detached.
    """
    step = image_gradient.sign()
    if spread is not None:
        step = step * spread.to(step)
    return images.detach().add(step, alpha=eps)


@part("transform", "promotion")
class Promotion(Transform):
    """Sample difficulty promotion: the student trains on ``x + eps * sign(dL/dx)`` too.

    Source: HAST (Li et al., CVPR 2023), sample difficulty promotion.
    """

    eps: float = 0.01
    """Size of the perturbation in normalized pixel units; of features, in deviations of each
    coefficient."""

    by_gradient = True
    mark = "_promoted"
    several_outputs = True

    def __post_init__(self) -> None:
        require_range("eps", self.eps, 0)
        self._spread: Tensor | None = None

    def bind(self, teacher: Network, student: Network) -> None:
        """Remember how far the values of features spread."""
        self._spread = teacher.pretrained.spread

    def forward(self, batch: Batch, gradient: Tensor | None = None) -> Batch:
        """Return the harder batch, detached."""
        assert gradient is not None
        return batch._replace(inputs=promote(batch.inputs, gradient, self.eps, self._spread))
