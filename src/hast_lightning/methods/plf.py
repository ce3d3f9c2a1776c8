"""PLF (Fan et al., CVPR 2024): pseudo-labels that are filtered by how sure the teacher is."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from hast_lightning.core.batch import Needs, Progress, Seen, weighted_mean
from hast_lightning.core.checks import require_range
from hast_lightning.core.network import TOKENS, Network
from hast_lightning.core.part import part
from hast_lightning.core.term import Term
from hast_lightning.terms.cross_entropy import entropy


def uncertainty(logits: Tensor) -> Tensor:
    """Return the entropy of ``softmax(logits)`` over ``log(classes)``, (N,) in [0, 1]."""
    return entropy(logits) / math.log(logits.shape[1])


def two_label_cross_entropy(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return ``l1 CE(S, top1) + l2 CE(S, top2)`` of each sample, (N,).

    ``l1`` and ``l2`` are the teacher's two largest probabilities over their sum.
    """
    top = teacher_logits.float().topk(2, dim=1)
    shares = top.values.softmax(dim=1)  # the other classes cancel
    logarithms = F.log_softmax(student_logits.float(), dim=1)
    return -(shares * logarithms.gather(1, top.indices)).sum(dim=1)


@part("term", "filtered_cross_entropy")
class FilteredCrossEntropy(Term):
    """The student's cross-entropy against the teacher's likeliest class where the teacher is sure.

    ``CE(S, c1)`` where the teacher's entropy is at most ``t log(classes)``, and elsewhere
    ``beta (p1 CE(S, c1) + p2 CE(S, c2)) / (p1 + p2)`` with its two likeliest classes. Each is a
    mean over its own samples, zero where there are none; ``t`` falls in a straight line from
    ``upper`` to ``lower`` with the steps. Labels of the batch are not looked at. The means are
    those of the whole batch, which a student step does not take apart then.

    Source: PLF (Fan et al., CVPR 2024); there ``t`` falls with the epochs.
    """

    lower: float = 0.2
    """Threshold of the entropy at the end (the paper's T_l)."""
    upper: float = 0.5
    """Threshold at the beginning (T_u)."""
    beta: float = 0.3
    """What samples count that the teacher is not sure of."""

    title = "Cross-entropy of filtered pseudo-labels"
    modalities = (*Term.modalities, TOKENS)
    parts = ("reliable", "others")
    by_sample = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("lower", self.lower, 0, 1)
        require_range("upper", self.upper, self.lower, 1)
        require_range("beta", self.beta, 0)

    def bind(self, teacher: Network, student: Network) -> Needs:
        """Ask for the student's logits."""
        return Needs(student=())

    def threshold(self, progress: Progress) -> float:
        """Return ``t`` of a step: ``upper`` in the first one."""
        done = (progress.step - 1) / progress.total
        return self.upper - done * (self.upper - self.lower)

    def forward(self, seen: Seen) -> Tensor:
        """Return the losses of sure and of other samples, (2,)."""
        assert seen.student is not None
        student, teacher = seen.student.logits, seen.teacher.logits.detach()
        reliable = (uncertainty(teacher) <= self.threshold(seen.progress)).float()
        weights = torch.ones_like(reliable) if seen.batch.weights is None else seen.batch.weights
        one = F.cross_entropy(student.float(), teacher.argmax(dim=1), reduction="none")
        two = two_label_cross_entropy(student, teacher)
        return torch.stack(
            [
                weighted_mean(one, weights * reliable),
                self.beta * weighted_mean(two, weights * (1 - reliable)),
            ]
        )
