"""How close a student is to its teacher, measured without labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

CHUNK = 64
"""Images that go through the networks at once."""


class Closeness(NamedTuple):
    """What is known of a student without labels.

    Attributes:
        error: Of its logits, relative to the spread of the teacher's; 0: they are the same.
        agreement: Percent of the images on which both networks predict one class.
    """

    error: float
    agreement: float


@torch.no_grad()
def closeness(teacher: nn.Module, student: nn.Module, inputs: Tensor) -> Closeness:
    """Return how close a student is to its teacher on ``inputs`` (N, ...)."""
    parts = torch.split(inputs, CHUNK)
    of_teacher = torch.cat([teacher(part) for part in parts])
    of_student = torch.cat([student(part) for part in parts])
    same = (of_student.argmax(1) == of_teacher.argmax(1)).float().mean()
    return Closeness(relative_logit_error(of_student, of_teacher), 100 * float(same))


def relative_logit_error(of_student: Tensor, of_teacher: Tensor) -> float:
    """Return ``sum (s - t)^2 / sum (t - mean t)^2``, over images and classes.

    The mean over classes is taken off each image's logits first, which a softmax does not see;
    ``mean t`` is the mean over images. A student that always gives the teacher's mean answer has
    an error of 1. Logits that are NaN or infinite have an infinite error.

    Args:
        of_student: (N, classes).
        of_teacher: (N, classes).
    """
    student, teacher = (
        logits.double() - logits.double().mean(dim=1, keepdim=True)
        for logits in (of_student, of_teacher)
    )
    spread = (teacher - teacher.mean(dim=0)).square().sum()
    error = (student - teacher).square().sum() / spread.clamp_min(torch.finfo(torch.float64).tiny)
    return float(error) if bool(error.isfinite()) else float("inf")
