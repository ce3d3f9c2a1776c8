"""Knowledge distillation from the teacher's logits."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def kl_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    reduction: str = "batchmean",
) -> Tensor:
    """``temperature^2 * KL(T || S)`` of the softened predictions.

    Source: Hinton et al., 2015; HAST (Li et al., CVPR 2023) with temperature 20.

    Args:
        student_logits: (N, classes).
        teacher_logits: (N, classes).
        temperature: What both logits are divided by.
        reduction: ``batchmean`` averages over the batch; ``mean`` over the classes too, as
            the released code of GDFQ does.

    Returns:
        Scalar, float32, zero where the two agree.
    """
    divergence = F.kl_div(
        F.log_softmax(student_logits.float() / temperature, dim=1),
        F.log_softmax(teacher_logits.float() / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    if reduction == "mean":
        # Not kl_div's own "mean", which PyTorch has announced to redefine.
        divergence = divergence / student_logits.shape[1]
    return temperature**2 * divergence
