"""Answers of the networks to some samples, and those that the last student step kept."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hast_lightning.core.stage import Outcome
from hast_lightning.terms.cross_entropy import difficulties, difficulty, most_frequent
from hast_lightning.training.module import ZeroShotQuantization

FEWEST, MOST = 32, 512
MOST_VALUES = 2**21
"""Images are looked at as long as their pixels are no more than this."""
AT_ONCE = 64


class Samples(NamedTuple):
    """Some images and what the networks say to them.

    Attributes:
        images: (N, C, H, W), normalized.
        labels: (N,), int64; the teacher's answers where the source gives none.
        teacher: Classes that the teacher predicts (N,).
        of_teacher: Difficulty for the teacher (N,).
        student: Classes that the student predicts (N,); none where it is not calibrated.
        of_student: Difficulty for the student (N,).
    """

    images: Tensor
    labels: Tensor
    teacher: Tensor
    of_teacher: Tensor
    student: Tensor | None = None
    of_student: Tensor | None = None


class Harder(NamedTuple):
    """The batch of the last student step, before and after a transform by gradient.

    Attributes:
        of_student: Difficulty for the student before and after, (N,) each.
        of_teacher: The same for the teacher.
        losses: The student's loss before and after.
        word: What the changed images are called, from the mark of the transform.
    """

    of_student: tuple[Tensor, Tensor]
    of_teacher: tuple[Tensor, Tensor]
    losses: tuple[float, float]
    word: str


def sample_count(input_shape: tuple[int, ...]) -> int:
    """Return how many images are looked at: fewer of large ones, so that it takes seconds."""
    return max(FEWEST, min(MOST, MOST_VALUES // math.prod(input_shape)))


@torch.no_grad()
def look_at(module: ZeroShotQuantization) -> Samples:
    """Ask teacher and student about samples of the main source.

    Changes none of them and draws no random numbers.

    Args:
        module: After its run.
    """
    count = sample_count(module.teacher.pretrained.input_shape)
    batch = module.source.preview(count)
    parts = [part.inputs for part in batch.split(AT_ONCE)]
    teacher = torch.cat([module.teacher(part) for part in parts])
    labels = teacher.argmax(dim=1) if batch.labels is None else batch.labels
    answers = most_frequent(teacher.argmax(dim=1))
    seen = Samples(batch.inputs, most_frequent(labels), answers, difficulty(teacher, labels))
    if not module.ranges_frozen:
        return seen
    student = torch.cat([module.student(part) for part in parts])
    answers = most_frequent(student.argmax(dim=1))
    return seen._replace(student=answers, of_student=difficulty(student, labels))


def harder_batch(outcome: Outcome) -> Harder | None:
    """Return what the last student step trained on beside its batch; none where it did not."""
    mark = next((mark for mark in outcome.answers if mark), None)
    if mark is None or "" not in outcome.answers:
        return None
    before, after = difficulties(outcome.answers[""]), difficulties(outcome.answers[mark])
    marked = {name for name in outcome.scalars if name.endswith(mark)}
    plain = {name.removesuffix(mark) for name in marked}
    losses = tuple(sum(float(outcome.scalars[n]) for n in names) for names in (plain, marked))
    word = mark.strip("_").replace("_", " ")
    return Harder((before[0], after[0]), (before[1], after[1]), (losses[0], losses[1]), word)
