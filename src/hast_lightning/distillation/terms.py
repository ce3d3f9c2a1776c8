"""The student's loss as a sum of switchable terms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hast_lightning.config import DistillationConfig
from hast_lightning.distillation.alignment import alignment_loss
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


Term = Callable[[DistillationPair], Tensor]
"""A weighted loss term: a scalar of a pair."""


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
            config.alignment.weight * alignment_loss(pair.student_features, pair.teacher_features)
        )
    return terms


def distillation_loss(
    terms: dict[str, Term], pair: DistillationPair
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of ``terms`` for one batch.

    Returns:
        The loss (scalar, with its graph) and every term's value, detached, by name.
    """
    values = {name: term(pair) for name, term in terms.items()}
    loss = torch.stack(list(values.values())).sum()
    return loss, {name: value.detach() for name, value in values.items()}
