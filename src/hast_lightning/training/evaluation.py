"""Accuracy and agreement of student and teacher, or the error of values, with torchmetrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric, SumMetric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.utilities.distributed import gather_all_tensors

from hast_lightning.core.outputs import Outputs
from hast_lightning.errors import DivergenceError, ModelError
from hast_lightning.runtime.ranks import answered, gathered_objects, world_size

PERCENT_DIGITS = 4
LARGEST = 1e12
"""The largest error: a number, so that files can hold it."""
ALIKE = 1e-12
"""Share of the squared values below which their spread is rounding."""


@dataclass(frozen=True)
class Evaluation:
    """What one pass over a set of images found, in percent.

    Attributes:
        teacher_top1: Share of the images that the teacher classifies as labeled; none where it
            puts out values and no classes, as in the two below.
        student_top1: The same of the student.
        agreement: Share of the images on which both predict the same class.
        images: Number of images, or of texts, of which every token counts.
        teacher_perplexity: Of a network of tokens, ``exp`` of its mean cross-entropy with the token
            that follows; none: of any other.
        student_perplexity: The same of the student.
        error: Of values, the squared error relative to the spread of the teacher's; else none.
        errors: Of several outputs that of each, by name, of which ``error`` is the mean.
    """

    teacher_top1: float | None
    student_top1: float | None
    agreement: float | None
    images: int
    teacher_perplexity: float | None = None
    student_perplexity: float | None = None
    error: float | None = None
    errors: Mapping[str, float] = field(default_factory=dict)


def _gathered(state: Tensor, group: Any = None) -> list[Tensor]:
    """Gather a metric's state as torchmetrics does, but tell a lost rank as such."""
    with answered():
        return gather_all_tensors(state, group)


_AMONG_RANKS: dict[str, Any] = {
    "dist_sync_fn": _gathered,
    "distributed_available_fn": lambda: world_size() > 1,
}
"""How metrics go over processes: those of the run, not of the program that it is part of."""


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return ``sum (f - e)^2 / sum (e - mean e)^2``, the mean over samples; 0: they are the same.

    What always answers with the mean has an error of 1; the largest is :data:`LARGEST`. Of values
    that do not differ over samples, or of one sample, the values themselves take the place of
    their spread.

    Args:
        found: (N, ...).
        expected: Of the same shape.
    """
    return _Sums.of(found, expected).error


def relative_errors(pairs: Iterable[tuple[Tensor, Tensor]], outputs: Outputs) -> dict[str, float]:
    """Return :func:`relative_error` of each output over all batches, by name.

    Args:
        pairs: Batches of what was found and what was expected, as ``outputs`` splits them.
        outputs: What they are.
    """
    sums: dict[str, _Sums] = {}
    for found, expected in pairs:
        parts = outputs.split(expected)
        for name, part in outputs.split(found).items():
            some = _Sums.of(part, parts[name])
            sums[name] = some.plus(sums[name]) if name in sums else some
    return {name: each.error for name, each in sums.items()}


def mean_error(errors: Mapping[str, float]) -> float:
    """Return the mean of the errors of several outputs, each relative to its own spread."""
    return sum(errors.values()) / len(errors)


class _Sums(NamedTuple):
    """What a relative error is made of; sums over samples, float64.

    Attributes:
        distance: Of ``(f - e)^2``, a scalar.
        square: Of ``e^2``, a scalar.
        total: Of ``e``, of the shape of a sample.
        samples: How many.
    """

    distance: Tensor
    square: Tensor
    total: Tensor
    samples: Tensor

    @classmethod
    def of(cls, found: Tensor, expected: Tensor) -> _Sums:
        found, expected = found.detach().double(), expected.detach().double()
        return cls(
            (found - expected).square().sum(),
            expected.square().sum(),
            expected.sum(0),
            torch.tensor(float(len(expected)), dtype=torch.float64, device=expected.device),
        )

    def plus(self, other: _Sums) -> _Sums:
        """Return the sums over both."""
        return _Sums(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def error(self) -> float:
        """Return the relative error, at most :data:`LARGEST`, which NaN has."""
        spread = self.square - self.total.square().sum() / self.samples
        scale = spread if spread > ALIKE * self.square else self.square
        if not float(self.distance):
            return 0.0
        found = float(self.distance / scale)
        return min(found, LARGEST) if math.isfinite(found) else LARGEST


class RelativeError(Metric):
    """Gathers :func:`relative_error` over batches and processes.

    Args:
        shape: Of the output for one sample.
    """

    distance: Tensor
    square: Tensor
    total: Tensor
    samples: Tensor
    full_state_update = False

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(**_AMONG_RANKS)
        for name in _Sums._fields:
            zeros = torch.zeros(tuple(shape) if name == "total" else (), dtype=torch.float64)
            self.add_state(name, default=zeros, dist_reduce_fx="sum")

    def update(self, found: Tensor, expected: Tensor) -> None:
        """Take in a batch of outputs (N, ...)."""
        for name, value in _Sums.of(found, expected)._asdict().items():
            setattr(self, name, getattr(self, name) + value)

    def compute(self) -> Tensor:
        """Return the error, a scalar."""
        sums = _Sums(self.distance, self.square, self.total, self.samples)
        return torch.tensor(sums.error, dtype=torch.float64)


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
        super().__init__(**_AMONG_RANKS)
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
        MulticlassAccuracy(num_classes, average="micro", **_AMONG_RANKS).to(device)
        for _ in range(3)
    ]
    images_seen = SumMetric(**_AMONG_RANKS).to(device)
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
            SumMetric(**_AMONG_RANKS).set_dtype(torch.float64).to(device) for _ in range(3)
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
        # Of a few texts a process may have none, and the others wait for its sums.
        if not any(gathered_objects(self._met)):
            return ()
        of_teacher, of_student, count = (float(total.compute()) for total in self._sums)
        return tuple(math.exp(min(total / count, 700.0)) for total in (of_teacher, of_student))  # type: ignore[return-value]


@torch.no_grad()
def evaluate_values(
    teacher: nn.Module,
    student: nn.Module,
    batches: Iterable[Tensor],
    outputs: Outputs,
    device: torch.device,
) -> Evaluation:
    """Compare networks that put out values and no classes on ``batches`` of inputs (N, ...).

    Args:
        teacher: In evaluation mode.
        student: Likewise.
        batches: Inputs.
        outputs: What they put out.
        device: Of the networks.

    Raises:
        ModelError: the teacher puts out NaN or infinite values.
        DivergenceError: the student does.
        LostProcessError: another process has ended, or does not answer.
    """
    named = zip(outputs.names, outputs.shapes, strict=True)
    metrics = {name: RelativeError(shape or (1,)).to(device) for name, shape in named}
    seen = SumMetric(**_AMONG_RANKS).to(device)
    for inputs in batches:
        of_teacher, of_student = teacher(inputs.to(device)), student(inputs.to(device))
        _require_finite(of_teacher, of_student)
        found, expected = outputs.split(of_student), outputs.split(of_teacher)
        for name, metric in metrics.items():
            metric.update(found[name], expected[name])
        seen.update(len(inputs))
    errors = {name: float(metric.compute()) for name, metric in metrics.items()}
    each = errors if outputs.several else {}
    count = int(seen.compute())
    return Evaluation(None, None, None, count, error=mean_error(errors), errors=each)


def _require_finite(of_teacher: Tensor, of_student: Tensor) -> None:
    """Refuse NaN and infinity, which have a largest entry too and would look like a result."""
    if not bool(of_teacher.isfinite().all()):
        raise ModelError("the pretrained network puts out NaN or infinite logits")
    if not bool(of_student.isfinite().all()):
        raise DivergenceError("the student puts out NaN or infinite logits")
