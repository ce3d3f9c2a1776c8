"""What a term sees, made by hand."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hast_lightning.core.batch import Batch, Progress, Seen, Trace


def seen(
    teacher: Tensor,
    student: Tensor | None = None,
    *,
    targets: Tensor | None = None,
    weights: Tensor | None = None,
    of_teacher: Mapping[str, Tensor] | None = None,
    of_student: Mapping[str, Tensor] | None = None,
) -> Seen:
    """Return what a term sees of two networks that put out these logits and values of nodes."""
    learned = None if student is None else Trace(student, of_student or {})
    batch = Batch(teacher, targets, weights)
    return Seen(batch, Trace(teacher, of_teacher or {}), learned, Progress("any", 1, 1))
