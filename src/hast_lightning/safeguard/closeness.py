"""How close a student is to its teacher, measured without labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hast_lightning.core.outputs import Outputs
from hast_lightning.graph.outputs import by_position
from hast_lightning.training.evaluation import mean_error, relative_error, relative_errors

CHUNK = 64
"""Images that go through the networks at once."""
TEXTS = 4
"""Texts that go through the networks at once."""


class Closeness(NamedTuple):
    """What is known of a student without labels.

    Attributes:
        error: Of its logits, relative to the spread of the teacher's; 0: they are the same.
        agreement: Percent of the images on which both networks predict one class; none of values
            that are no classes.
    """

    error: float
    agreement: float | None

    @property
    def measured(self) -> dict[str, float]:
        """Return what is known, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}


@torch.no_grad()
def closeness(
    teacher: nn.Module, student: nn.Module, inputs: Tensor, *, values: Outputs | None = None
) -> Closeness:
    """Return how close a student is to its teacher on ``inputs`` (N, ...).

    Args:
        teacher: In evaluation mode.
        student: Likewise.
        inputs: That both answer.
        values: What the answers are where they are values, and no classes; of several the error is
            the mean of theirs.
    """
    # Each text has an answer for every token.
    parts = torch.split(inputs, CHUNK if inputs.is_floating_point() else TEXTS)
    if values is not None:
        pairs = ((student(part), teacher(part)) for part in parts)
        return Closeness(mean_error(relative_errors(pairs, values)), None)
    of_teacher = torch.cat([teacher(part) for part in parts])
    of_student = torch.cat([student(part) for part in parts])
    of_teacher, of_student = by_position(of_teacher), by_position(of_student)
    same = (of_student.argmax(1) == of_teacher.argmax(1)).float().mean()
    return Closeness(relative_logit_error(of_student, of_teacher), 100 * float(same))


def relative_logit_error(of_student: Tensor, of_teacher: Tensor) -> float:
    """Return :func:`relative_error` of logits less the mean over classes, which no softmax sees.

    Args:
        of_student: (N, classes).
        of_teacher: (N, classes).
    """
    student, teacher = (
        logits.double() - logits.double().mean(dim=1, keepdim=True)
        for logits in (of_student, of_teacher)
    )
    return relative_error(student, teacher)
