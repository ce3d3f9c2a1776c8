"""Sample difficulty promotion: make every image harder for the student as it is now."""

from __future__ import annotations

from torch import Tensor

from hast_lightning.core.batch import Batch
from hast_lightning.core.checks import require_range
from hast_lightning.core.part import part
from hast_lightning.core.transform import Transform


def promote(images: Tensor, image_gradient: Tensor, eps: float) -> Tensor:
    """Return ``x + eps * sign(dL/dx)``: one step up the student's loss.

    Source: HAST (Li et al., CVPR 2023), sample difficulty promotion. The gradient is that
    of the student's loss through both networks.

    Args:
        images: (N, C, H, W), normalized.
        image_gradient: The gradient of the student's loss with respect to ``images``.
        eps: Length of the step in normalized pixel units.

    Returns:
        (N, C, H, W), detached.
    """
    return images.detach().add(image_gradient.sign(), alpha=eps)


@part("transform", "promotion")
class Promotion(Transform):
    """Sample difficulty promotion: the student trains on ``x + eps * sign(dL/dx)`` too.

    Source: HAST (Li et al., CVPR 2023), sample difficulty promotion.
    """

    eps: float = 0.01
    """Size of the perturbation in normalized pixel units."""

    by_gradient = True
    mark = "_promoted"

    def __post_init__(self) -> None:
        require_range("eps", self.eps, 0)

    def forward(self, batch: Batch, gradient: Tensor | None = None) -> Batch:
        """Return the harder batch, detached."""
        assert gradient is not None
        return batch._replace(inputs=promote(batch.inputs, gradient, self.eps))
