"""AdaSG and AdaDFQ: a generator that adapts its images to what the student can still learn.

AdaSG (Qian et al., AAAI 2023) and AdaDFQ (Qian et al., CVPR 2023) are one method with different
constants. Formulas are those of both released codes. With the logits z of teacher and student,
``d = z_T - z_S`` is what they disagree on, ``z_T + z_S`` what they agree on.
"""

from __future__ import annotations

import math

from torch import Tensor

from hast_lightning.core.batch import Needs, Seen, weighted_mean
from hast_lightning.core.checks import require_range
from hast_lightning.core.network import TOKENS
from hast_lightning.core.part import part
from hast_lightning.core.term import Term
from hast_lightning.terms.cross_entropy import cross_entropy, entropy

LEAST_SPAN = 1e-6
"""Least distance between the smallest entropy of a batch and the largest possible one."""


def relative_entropy_in_batch(logits: Tensor) -> Tensor:
    """Return ``(H - min H) / (log(classes) - min H)``, where H is the entropy of a sample.

    The smallest entropy of the batch carries gradient, as in the released code. Where all
    entropies are the largest possible the quotient is zero by zero there; here it is zero.

    Args:
        logits: (N, classes).

    Returns:
        (N,), from 0 (the least entropy of the batch) to 1 (that of equal probabilities).
    """
    found = entropy(logits)
    least = found.min()
    return (found - least) / (math.log(logits.shape[1]) - least).clamp_min(LEAST_SPAN)


def difference(seen: Seen) -> Tensor:
    """Return ``z_T - z_S`` (N, classes), float32."""
    assert seen.student is not None
    return seen.teacher.logits.float() - seen.student.logits.float()


@part("term", "difference_entropy")
class DifferenceEntropy(Term):
    """The student's loss: ``-T^2 * mean entropy(softmax((z_T - z_S) / T))``.

    It is least, ``-T^2 * log(classes)``, where the logits of both networks differ by a constant.

    Source: released code of AdaSG (Qian et al., AAAI 2023) and AdaDFQ (Qian et al., CVPR 2023).
    """

    temperature: float = 20.0
    """What the difference of the logits is divided by."""

    title = "Distillation loss (entropy of the difference)"
    modalities = (*Term.modalities, TOKENS)
    needs = Needs(student=())

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("temperature", self.temperature, 0, open_minimum=True)

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss, which is negative."""
        spread = entropy(difference(seen) / self.temperature)
        return -(self.temperature**2) * weighted_mean(spread, seen.batch.weights)


@part("term", "entropy_margins")
class EntropyMargins(Term):
    """Keeps what teacher and student disagree on from being too clear and from being too vague.

    ``mean max(lower - H', 0) + mean max(H' - upper, 0)`` with H' the entropy of
    ``softmax(z_T - z_S)``, relative to the batch (:func:`relative_entropy_in_batch`).

    Source: released code of AdaSG (Qian et al., AAAI 2023) and AdaDFQ (Qian et al., CVPR 2023).
    """

    lower: float = 0.1
    """Least relative entropy that costs nothing (lambda_l)."""
    upper: float = 0.8
    """Largest relative entropy that costs nothing (lambda_u)."""

    title = "Margins of the entropy of the difference"
    modalities = (*Term.modalities, TOKENS)
    needs = Needs(student=())
    by_sample = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("lower", self.lower, 0, 1)
        require_range("upper", self.upper, self.lower, 1)

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss."""
        found = relative_entropy_in_batch(difference(seen))
        outside = (self.lower - found).clamp_min(0) + (found - self.upper).clamp_min(0)
        return weighted_mean(outside, seen.batch.weights)


@part("term", "disagreement_cross_entropy")
class DisagreementCrossEntropy(Term):
    """``CE(z_T - z_S, y)``: the teacher knows the label, and the student does not.

    Source: released code of AdaSG (Qian et al., AAAI 2023) and AdaDFQ (Qian et al., CVPR 2023).
    """

    title = "Cross-entropy of the difference"
    needs = Needs(student=(), labels="some")

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss."""
        assert seen.batch.targets is not None
        return cross_entropy(difference(seen), seen.batch.targets, seen.batch.weights)


@part("term", "agreement_cross_entropy")
class AgreementCrossEntropy(Term):
    """``CE(z_T + z_S, y)``: both networks know the label.

    Source: released code of AdaSG (Qian et al., AAAI 2023) and AdaDFQ (Qian et al., CVPR 2023).
    """

    title = "Cross-entropy of the sum"
    needs = Needs(student=(), labels="some")

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss."""
        assert seen.student is not None
        assert seen.batch.targets is not None
        total = seen.teacher.logits.float() + seen.student.logits.float()
        return cross_entropy(total, seen.batch.targets, seen.batch.weights)
