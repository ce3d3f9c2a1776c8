"""Sample difficulty promotion: make every image harder for the student as it is now."""

from __future__ import annotations

from torch import Tensor


def promote(images: Tensor, image_gradient: Tensor, eps: float) -> Tensor:
    """``x + eps * sign(dL/dx)``: one step up the student's loss.

    Source: HAST (Li et al., CVPR 2023), sample difficulty promotion. The gradient is that
    of the distillation loss through both networks.

    Args:
        images: (N, C, H, W), normalized.
        image_gradient: The gradient of the student's loss with respect to ``images``.
        eps: Length of the step in normalized pixel units.

    Returns:
        (N, C, H, W), detached.
    """
    return images.detach().add(image_gradient.sign(), alpha=eps)
