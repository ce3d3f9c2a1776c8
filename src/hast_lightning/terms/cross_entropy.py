"""Cross-entropy against the labels of a batch: plain, and weighted by the samples' difficulty."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hast_lightning.core.batch import Answers, Needs, Seen, weighted_mean
from hast_lightning.core.checks import require_range
from hast_lightning.core.part import part
from hast_lightning.core.term import Term


def _log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``log(p_y / (1 - p_y))``, (N,): the label's logit against all others together.

    Both ``p_y`` and ``1 - p_y`` are sigmoids of it, so neither is found by
    subtracting from one, which would lose all digits of a confident sample.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    index = labels.unsqueeze(1)
    others = logits.scatter(1, index, float("-inf")).logsumexp(dim=1)
    return logits.gather(1, index).squeeze(1) - others


def difficulty(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the difficulty of each sample, ``d(x) = 1 - p_y(x)`` (HAST, hard sample synthesis).

    Args:
        logits: the teacher's outputs, shape (N, classes) with at least two classes; of maps
            (N, classes, H, W) the mean over all positions is taken.
        labels: shape (N,), or (N, H, W), int64.

    Returns:
        Shape (N,), in [0, 1]; accurate also where ``p_y`` rounds to one.
    """
    found = torch.sigmoid(-_log_odds(logits, labels))
    return found if found.dim() == 1 else found.flatten(1).mean(dim=1)


def difficulties(parts: Sequence[Answers]) -> tuple[Tensor, Tensor]:
    """Return the difficulty of a batch's samples, (N,), for student and teacher.

    Without labels the teacher's answers take their place.

    Args:
        parts: What both networks said to the batch, in parts.
    """
    student = torch.cat([part.student_logits for part in parts])
    teacher = torch.cat([part.teacher_logits for part in parts])
    known = [part.batch.labels for part in parts if part.batch.labels is not None]
    labels = torch.cat(known) if known else teacher.argmax(dim=1)
    return difficulty(student, labels), difficulty(teacher, labels)


def most_frequent(classes: Tensor) -> Tensor:
    """Return the class of each sample, (N,); of maps (N, H, W) that of most positions."""
    return classes if classes.dim() == 1 else classes.flatten(1).mode(dim=1).values


def hardness_weighted_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    gamma: float,
    weights: Tensor | None = None,
    *,
    detached: bool = False,
) -> Tensor:
    """Return the cross-entropy that weighs hard samples more, ``mean[d^gamma * CE]`` (HAST).

    The gradient flows through the weight ``d^gamma`` too, if it is not detached. The weight is
    taken as ``exp(gamma * log d)``: with ``gamma < 1`` the derivative of a power is
    infinite at zero, but that of the exponential stays finite even where ``d``
    itself underflows.

    Args:
        logits: the teacher's outputs, shape (N, classes) with at least two classes.
        labels: shape (N,), int64.
        gamma: zero gives the plain cross-entropy.
        weights: of the samples, (N,); none: all alike.
        detached: take ``d^gamma`` as a constant, as Co-Boosting's released code does.

    Returns:
        A scalar, never negative.
    """
    log_odds = _log_odds(logits, labels)
    cross_entropy = -F.logsigmoid(log_odds)
    weight = torch.exp(gamma * F.logsigmoid(-log_odds))
    weight = weight.detach() if detached else weight
    return weighted_mean(weight * cross_entropy, weights)


@part("term", "hard_cross_entropy")
class HardCrossEntropy(Term):
    """The teacher's cross-entropy, weighted by difficulty: ``mean[d^gamma * CE]``.

    Source: HAST (Li et al., CVPR 2023), hard sample synthesis.
    """

    gamma: float = 2.0
    """Exponent of the difficulty d = 1 - p_y: the larger, the less easy samples count."""
    by_difficulty: bool = True
    """False: every sample weighs the same (gamma = 0), the plain cross-entropy of the ablation."""
    detached: bool = False
    """True: no gradient through the difficulty, as in Co-Boosting (Dai et al., ICLR 2024)."""

    title = "Cross-entropy, weighted by difficulty"
    needs = Needs(labels="hard")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("gamma", self.gamma, 0)

    def unused(self) -> Collection[str]:
        """Return the exponent where every sample weighs the same."""
        return () if self.by_difficulty else ("gamma",)

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss of the teacher's logits."""
        labels = seen.batch.targets
        assert labels is not None
        gamma = self.gamma if self.by_difficulty else 0.0
        return hardness_weighted_cross_entropy(
            seen.teacher.logits, labels, gamma, seen.batch.weights, detached=self.detached
        )


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy (N,) of the softmax of ``logits`` (N, classes), in nats, float32."""
    logarithms = F.log_softmax(logits.float(), dim=1)
    return -(logarithms.exp() * logarithms).sum(dim=1)


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy, float32.

    Args:
        logits: (N, classes).
        targets: Hard labels (N,) int64, or soft ones (N, classes).
        weights: Of the samples, (N,); none: all alike.
    """
    if weights is None:
        return F.cross_entropy(logits.float(), targets)
    return weighted_mean(F.cross_entropy(logits.float(), targets, reduction="none"), weights)


@part("term", "teacher_cross_entropy")
class TeacherCrossEntropy(Term):
    """The teacher's cross-entropy ``CE(T(x), y)``, which images are synthesized for.

    Source: GDFQ (Xu et al., ECCV 2020), equation 4.
    """

    title = "Cross-entropy of the teacher"
    needs = Needs(labels="some")

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss."""
        targets = seen.batch.targets
        assert targets is not None
        if targets.dim() == 1:
            # The same value as F.cross_entropy, by way of the log-odds as HAST's weights need it.
            return hardness_weighted_cross_entropy(
                seen.teacher.logits, targets, 0.0, seen.batch.weights
            )
        return cross_entropy(seen.teacher.logits, targets, seen.batch.weights)


@part("term", "cross_entropy")
class CrossEntropy(Term):
    """The student's cross-entropy ``CE(S(x), y)`` against the labels of the batch.

    Source: GDFQ (Xu et al., ECCV 2020), equation 7.
    """

    title = "Cross-entropy of the student"
    needs = Needs(student=(), labels="some")

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss."""
        assert seen.student is not None
        assert seen.batch.targets is not None
        return cross_entropy(seen.student.logits, seen.batch.targets, seen.batch.weights)
