"""Accuracy and agreement of student and teacher, measured with torchmetrics."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric, SumMetric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.utilities.distributed import gather_all_tensors

from hast_lightning.errors import DivergenceError, ModelError
from hast_lightning.runtime.ranks import answered

PERCENT_DIGITS = 4


@dataclass(frozen=True)
class Evaluation:
    """What one pass over a set of images found, in percent.

    Attributes:
        teacher_top1: Share of the images that the teacher classifies as labeled.
        student_top1: The same of the student.
        agreement: Share of the images on which both predict the same class.
        images: Number of images, or of texts, of which every token counts.
        teacher_perplexity: Of a network of tokens, ``exp`` of its mean cross-entropy with the token
            that follows; none: of any other.
        student_perplexity: The same of the student.
    """

    teacher_top1: float
    student_top1: float
    agreement: float
    images: int
    teacher_perplexity: float | None = None
    student_perplexity: float | None = None


def _gathered(state: Tensor, group: Any = None) -> list[Tensor]:
    """Gather a metric's state as torchmetrics does, but tell a lost rank as such."""
    with answered():
        return gather_all_tensors(state, group)


class Confusion(Metric):
    """Counts how often the student said one class where the teacher said another.

    torchmetrics' own counts in a mode that deterministic algorithms make very slow with a
    thousand classes.

    Args:
        num_classes: Classes of both networks.
    """

    counts: Tensor
    full_state_update = False

    def __init__(self, num_classes: int) -> None:
        super().__init__(dist_sync_fn=_gathered)
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("counts", default=zeros, dist_reduce_fx="sum")

    def update(self, of_student: Tensor, of_teacher: Tensor) -> None:
        """Count a batch of predicted classes, (N,) int64 each."""
        one = torch.ones_like(of_teacher)
        self.counts.index_put_((of_teacher, of_student), one, accumulate=True)

    def compute(self) -> Tensor:
        """Return images by class of teacher (rows) and student, (classes, classes) int64."""
        return self.counts


@torch.no_grad()
def evaluate(
    teacher: nn.Module,
    student: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    device: torch.device,
    confusion: Confusion | None = None,
) -> Evaluation:
    """Compare both networks on ``batches`` of (images, labels).

    Both networks are called as they are: put them in evaluation mode first. ``confusion``, where
    it is given, counts which class became which.

    Raises:
        ModelError: the teacher puts out NaN or infinite logits.
        DivergenceError: the student does.
        LostProcessError: another process has ended, or does not answer.
    """
    # With several processes each sees its share; computing adds up what all have seen.
    metrics = [
        MulticlassAccuracy(num_classes, average="micro", dist_sync_fn=_gathered).to(device)
        for _ in range(3)
    ]
    images_seen = SumMetric(dist_sync_fn=_gathered).to(device)
    perplexities = _Perplexities(device)
    for images, labels in batches:
        of_teacher, of_student = teacher(images.to(device)), student(images.to(device))
        _require_finite(of_teacher, of_student)
        images_seen.update(len(images))
        if are_texts(of_teacher, labels):
            counts = labels.to(device) >= 0
            of_teacher, of_student = (x.movedim(1, -1)[counts] for x in (of_teacher, of_student))
            labels = labels[labels >= 0]
            perplexities.update(of_teacher, of_student, labels.to(device))
        predicted_by_teacher, predicted_by_student = of_teacher.argmax(1), of_student.argmax(1)
        metrics[0].update(predicted_by_teacher, labels.to(device))
        metrics[1].update(predicted_by_student, labels.to(device))
        metrics[2].update(predicted_by_student, predicted_by_teacher)
        if confusion is not None:
            confusion.update(predicted_by_student, predicted_by_teacher)
    teacher_top1, student_top1, agreement = (
        # torchmetrics computes in float32, which has no more true digits than these.
        round(100 * float(metric.compute()), PERCENT_DIGITS)
        for metric in metrics
    )
    count = int(images_seen.compute())
    return Evaluation(teacher_top1, student_top1, agreement, count, *perplexities.compute())


def are_texts(logits: Tensor, labels: Tensor) -> bool:
    """Return whether logits (N, classes, length) are of the tokens behind those of texts."""
    return logits.dim() == 3 and labels.dim() == 2


class _Perplexities:
    """Perplexity of teacher and student, over all tokens of all ranks."""

    def __init__(self, device: torch.device) -> None:
        # In double precision, since tokens are many.
        self._sums = [
            SumMetric(dist_sync_fn=_gathered).set_dtype(torch.float64).to(device) for _ in range(3)
        ]
        self._met = False

    def update(self, of_teacher: Tensor, of_student: Tensor, following: Tensor) -> None:
        """Take logits (tokens, classes) of both, and what follows (tokens,)."""
        self._met = True
        for total, logits in zip(self._sums, (of_teacher, of_student), strict=False):
            total.update(F.cross_entropy(logits.float(), following, reduction="sum").double())
        self._sums[2].update(len(following))

    def compute(self) -> tuple[float, float] | tuple[()]:
        """Return both; nothing where there were no texts."""
        if not self._met:
            return ()
        of_teacher, of_student, count = (float(total.compute()) for total in self._sums)
        return tuple(math.exp(min(total / count, 700.0)) for total in (of_teacher, of_student))  # type: ignore[return-value]


def _require_finite(of_teacher: Tensor, of_student: Tensor) -> None:
    """Refuse NaN and infinity, which have a largest entry too and would look like a result."""
    if not bool(of_teacher.isfinite().all()):
        raise ModelError("the pretrained network puts out NaN or infinite logits")
    if not bool(of_student.isfinite().all()):
        raise DivergenceError("the student puts out NaN or infinite logits")
