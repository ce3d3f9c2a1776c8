"""What travels through a step: a batch, what the networks make of it, and what a term sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hast_lightning.core.outputs import Outputs


class Batch(NamedTuple):
    """Inputs and what is known of them.

    Attributes:
        inputs: (N, ...), normalized as the network expects.
        targets: Hard labels (N,) int64, soft labels (N, classes) float, or none.
        weights: Weight of each sample (N,), float; none: all alike.
    """

    inputs: Tensor
    targets: Tensor | None = None
    weights: Tensor | None = None

    @property
    def labels(self) -> Tensor | None:
        """Return hard labels (N,): those there are, or the likeliest of the soft ones."""
        if self.targets is None or self.targets.dim() == 1:
            return self.targets
        return self.targets.argmax(dim=1)

    def detach(self) -> Batch:
        """Return the batch without a graph."""
        return Batch(*(None if x is None else x.detach() for x in self))  # type: ignore[arg-type]

    def split(self, size: int) -> Iterator[Batch]:
        """Yield parts of at most ``size`` samples, in order."""
        for start in range(0, len(self.inputs), size):
            yield Batch(*(None if x is None else x[start : start + size] for x in self))  # type: ignore[arg-type]


class Trace(NamedTuple):
    """One pass of a network.

    Attributes:
        logits: Its output (N, classes); several outputs joined, (N, values).
        values: Those of nodes that were asked for.
        outputs: Of a network with several outputs what they are; none: there is one.
    """

    logits: Tensor
    values: Mapping[str, Tensor]
    outputs: Outputs | None = None

    def by_name(self) -> Mapping[str, Tensor]:
        """Return each output (N, ...) by name; an only one has the name ``""``."""
        return {"": self.logits} if self.outputs is None else self.outputs.split(self.logits)

    def output(self, name: str | None) -> Tensor:
        """Return one of several outputs, (N, ...); none names what :attr:`logits` is."""
        return self.logits if name is None else self.by_name()[name]


class Progress(NamedTuple):
    """Where a run stands: ``step`` of ``total`` steps (counted from 1) of ``stage``."""

    stage: str
    step: int
    total: int


class Needs(NamedTuple):
    """What a term wants to see, said before anything is computed.

    Attributes:
        teacher: Names of nodes of the teacher's graph.
        student: Names of nodes of the student's graph; none: a synthesis step need not run it.
        labels: ``hard``, ``some`` (hard or soft), or ``none`` (not needed).
        batch_norms: The teacher's BatchNorms must not be folded into convolutions: the values
            at their inputs are wanted.
        finished: The term is told of the samples that the source finishes.
    """

    teacher: tuple[str, ...] = ()
    student: tuple[str, ...] | None = None
    labels: str = "none"
    batch_norms: bool = False
    finished: bool = False


class Seen(NamedTuple):
    """What a term may look at: the batch as the networks saw it, their passes, and the step.

    ``student`` is none in a synthesis step whose terms do not ask for it; ``mark`` is that of the
    transform by gradient that made the batch, or empty.
    """

    batch: Batch
    teacher: Trace
    student: Trace | None
    progress: Progress
    mark: str = ""


class Answers(NamedTuple):
    """Both networks' logits (N, classes) in a student step, without gradient, and the batch."""

    student_logits: Tensor
    teacher_logits: Tensor
    batch: Batch


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean of ``values`` (N,), each counted by its weight (N,) where there are some."""
    if weights is None:
        return values.mean()
    return (values * weights).sum() / weights.sum().clamp_min(torch.finfo(values.dtype).tiny)
