"""The loss of a step: a sum of terms, and what it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hast_lightning.core.batch import Batch, Needs, Progress, Seen, Trace
from hast_lightning.core.network import Network
from hast_lightning.core.source import Source
from hast_lightning.core.term import Term
from hast_lightning.core.transform import Transform
from hast_lightning.errors import ConfigurationError


class Loss(NamedTuple):
    """A loss on one batch.

    Attributes:
        total: The sum of all terms, a scalar with its graph.
        values: Every term's weighted value, a detached scalar, by name.
        parts: Of terms that are sums the names and the weighted summands, detached, by name.
    """

    total: Tensor
    values: dict[str, Tensor]
    parts: dict[str, tuple[Sequence[str], Tensor]]


def active_terms(terms: Mapping[str, Term]) -> dict[str, Term]:
    """Return the terms that count, in order."""
    return {name: term for name, term in terms.items() if term.active}


def active_transforms(transforms: Mapping[str, Transform]) -> dict[str, Transform]:
    """Return the transforms that are switched on, in order."""
    return {name: transform for name, transform in transforms.items() if transform.enabled}


def bind_terms(
    terms: Mapping[str, Term], teacher: Network, student: Network, source: Source, key: str
) -> Needs:
    """Bind every term, and return what they want to see together.

    Args:
        terms: Those that count, by name.
        teacher: The frozen network.
        student: The learner.
        source: What gives the batches.
        key: The setting that holds the terms, for messages.

    Raises:
        ConfigurationError: a term wants labels or finished samples that the source does not give.
        ModelError: a network does not have what a term is about.
    """
    needs = []
    for name, term in terms.items():
        wanted = term.bind(teacher, student)
        _require_labels(wanted.labels, source, f"{key}.{name}", term.kind)
        if wanted.finished and getattr(source, "steps_to_fill", None) is None:
            raise ConfigurationError(
                f"{key}.{name}: the term {term.kind} learns from finished samples, and a source "
                f"of kind {source.kind} finishes none"
            )
        needs.append(wanted)
    of_student = [need.student for need in needs if need.student is not None]
    return Needs(
        teacher=_united(need.teacher for need in needs),
        student=_united(of_student) if of_student else None,
        batch_norms=any(need.batch_norms for need in needs),
        finished=any(need.finished for need in needs),
    )


def _united(names: object) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in names for name in group))  # type: ignore[attr-defined]


def _require_labels(wanted: str, source: Source, key: str, kind: str) -> None:
    given = source.label_kind
    if wanted == "none" or given == wanted or (wanted == "some" and given != "none"):
        return
    raise ConfigurationError(
        f"{key}: the term {kind} needs {'hard ' * (wanted == 'hard')}labels, and a source of kind "
        f"{source.kind} gives {'none' if given == 'none' else f'{given} ones'}"
    )


def bind_transforms(
    transforms: Mapping[str, Transform], teacher: Network, student: Network, key: str
) -> dict[str, Transform]:
    """Bind the transforms of a stage that takes no step of the student, and return those in use.

    Args:
        transforms: By name.
        teacher: The frozen network.
        student: The learner.
        key: The stage, for messages.

    Raises:
        ConfigurationError: one is made from the gradient of a student step.
        ModelError: a network does not have what a transform is about.
    """
    active = active_transforms(transforms)
    for name, transform in active.items():
        if transform.by_gradient:
            raise ConfigurationError(
                f"{key}.transforms.{name}: a transform {transform.kind} is made from the gradient "
                "of a student step, which only a stage distill takes; leave it out"
            )
        transform.bind(teacher, student)
    return active


def transformed(batch: Batch, transforms: Mapping[str, Transform]) -> Batch:
    """Return the batch as the transforms leave it, those by gradient left out."""
    for transform in transforms.values():
        if not transform.by_gradient:
            batch = transform(batch)
    return batch


def weighted_loss(terms: Mapping[str, Term], seen: Seen) -> Loss:
    """Return the sum of ``weight * term`` for one batch, and what it is made of."""
    parts = {name: term.weight * term(seen) for name, term in terms.items()}
    values = {name: value.sum() if value.dim() else value for name, value in parts.items()}
    return Loss(
        torch.stack(list(values.values())).sum(),
        {name: value.detach() for name, value in values.items()},
        {name: (terms[name].parts, part.detach()) for name, part in parts.items() if part.dim()},
    )


def see(
    batch: Batch, needs: Needs, teacher: Network, student: Network | None, progress: Progress
) -> Seen:
    """Run the networks on a batch and read what terms want to see.

    Args:
        batch: As the networks are to see it.
        needs: Of all terms together.
        teacher: The frozen network.
        student: The learner; none: only the teacher runs.
        progress: Where the run stands.
    """
    of_teacher: Trace = teacher.trace(batch.inputs, needs.teacher, unfolded=needs.batch_norms)
    of_student = None if student is None else student.trace(batch.inputs, needs.student or ())
    return Seen(batch, of_teacher, of_student, progress)
