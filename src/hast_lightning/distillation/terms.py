"""The student's loss as a sum of switchable terms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hast_lightning.config import DistillationConfig
from hast_lightning.distillation.alignment import alignment_losses
from hast_lightning.distillation.kd import kl_divergence


class DistillationPair(NamedTuple):
    """What the terms may look at: both networks' outputs for one batch.

    Attributes:
        student_logits: (N, classes).
        teacher_logits: (N, classes).
        student_features: One (N, C, H, W) a tap; empty where there is no alignment.
        teacher_features: The same of the teacher.
        labels: (N,) int64, the synthetic labels.
    """

    student_logits: Tensor
    teacher_logits: Tensor
    student_features: Sequence[Tensor]
    teacher_features: Sequence[Tensor]
    labels: Tensor

    def answers(self) -> Answers:
        """What both networks said, without the graph."""
        return Answers(self.student_logits.detach(), self.teacher_logits.detach(), self.labels)


class Answers(NamedTuple):
    """Both networks' logits, (N, classes) each without gradient, and the labels (N,)."""

    student_logits: Tensor
    teacher_logits: Tensor
    labels: Tensor


class DistillationLoss(NamedTuple):
    """The student's loss on one batch.

    Attributes:
        total: The sum of all terms, a scalar with its graph.
        values: Every term's value, a detached scalar, by name.
        blocks: What the terms that are sums over blocks are made of, detached (blocks,) by name.
    """

    total: Tensor
    values: dict[str, Tensor]
    blocks: dict[str, Tensor]


Term = Callable[[DistillationPair], Tensor]
"""A weighted loss term of a pair: a scalar, or (blocks,) to be summed."""


def build_terms(config: DistillationConfig) -> dict[str, Term]:
    """The terms that the ``distillation`` group asks for, weights included, by name."""
    terms: dict[str, Term] = {}
    if config.kd.weight:
        terms["kd"] = lambda pair: (
            config.kd.weight
            * kl_divergence(
                pair.student_logits,
                pair.teacher_logits,
                config.kd.temperature,
                config.kd.reduction,
            )
        )
    if config.cross_entropy_weight:
        terms["cross_entropy"] = lambda pair: (
            config.cross_entropy_weight * F.cross_entropy(pair.student_logits.float(), pair.labels)
        )
    if config.alignment.enabled and config.alignment.weight:
        terms["alignment"] = lambda pair: (
            config.alignment.weight * alignment_losses(pair.student_features, pair.teacher_features)
        )
    return terms


def distillation_loss(terms: dict[str, Term], pair: DistillationPair) -> DistillationLoss:
    """The sum of ``terms`` for one batch, and what it is made of."""
    parts = {name: term(pair) for name, term in terms.items()}
    values = {name: part.sum() if part.dim() else part for name, part in parts.items()}
    return DistillationLoss(
        torch.stack(list(values.values())).sum(),
        {name: value.detach() for name, value in values.items()},
        {name: part.detach() for name, part in parts.items() if part.dim()},
    )
