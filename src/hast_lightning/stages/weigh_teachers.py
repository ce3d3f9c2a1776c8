"""The stage that searches the weights of teachers: those that know the samples' labels gain."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hast_lightning.core.batch import Batch
from hast_lightning.core.checks import MAX_RATE, require_range
from hast_lightning.core.ensemble import Ensemble, mixture
from hast_lightning.core.part import part
from hast_lightning.core.stage import Bench, Outcome
from hast_lightning.errors import ConfigurationError
from hast_lightning.runtime.ranks import averaged
from hast_lightning.stages.reading import ReadingStage, require_source


def sign_step(weights: Tensor, gradient: Tensor, size: float) -> Tensor:
    """Return ``clip(w - size * sign(g), 0, 1)``, or ``w`` itself where that left no weight at all.

    Source: Co-Boosting (Dai et al., ICLR 2024), released code, which does not guard against weights
    that are all zero; the guard is ours.

    Args:
        weights: w, (K,), in [0, 1].
        gradient: g, (K,).
        size: Of the step.
    """
    moved = (weights - size * gradient.sign()).clamp(0, 1)
    return moved if bool(moved.any()) else weights


def weight_gradient(answers: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of an ensemble, a scalar, and its gradient by the weights, (K,).

    Args:
        answers: Logits of each member, (K, N, classes); taken as constants.
        targets: (N,) int64.
        weights: (K,), whose sum is positive.
    """
    with torch.enable_grad():
        free = weights.detach().clone().requires_grad_()
        loss = F.cross_entropy(mixture(answers.detach().float(), free), targets)
        (gradient,) = torch.autograd.grad(loss, free)
    return loss.detach(), gradient


@part("stage", "weigh_teachers")
class WeighTeachers(ReadingStage):
    """Moves the weights of several teachers so that together they give samples their labels.

    Each step is ``w <- clip(w - lr * decay^i * sign(dCE/dw), 0, 1)`` on one batch. Source:
    Co-Boosting (Dai et al., ICLR 2024), where i counts the passes over all samples; here the steps.
    """

    steps: int = 100
    """Steps, each of one batch."""
    batch_size: int = 128
    """Samples of a step, on each device."""
    lr: float = 0.01
    """Size of the first step; 0 leaves all weights as they are, equal."""
    decay: float = 0.99
    """What the size is multiplied by after each step."""

    float_student = True

    def __post_init__(self) -> None:
        require_range("steps", self.steps, 0)
        require_range("batch_size", self.batch_size, 1)
        require_range("lr", self.lr, 0, MAX_RATE)
        require_range("decay", self.decay, 0, 1, open_minimum=True)

    def bind(self, bench: Bench) -> None:
        """Check the source and the teachers.

        Raises:
            ConfigurationError: the source gives no hard labels, or one network teaches alone.
        """
        require_source(bench, self.source, self.key)
        if not isinstance(bench.teacher, Ensemble):
            raise ConfigurationError(
                f"{self.key}: one network teaches alone, so there is nothing to weigh; "
                "+model@teachers.<name>=<option of the group model> adds another"
            )
        source = bench.sources[self.source]
        if source.label_kind != "hard":
            raise ConfigurationError(
                f"{self.key}.source={self.source}: weights are searched by hard labels, which a "
                f"source of kind {source.kind} does not give"
            )

    def length(self, bench: Bench) -> int:
        """Return the steps."""
        return self.steps

    def step(self, bench: Bench, index: int) -> Outcome:
        """Move the weights by one batch."""
        batch = bench.sources[self.source].sample(self.batch_size)
        return self.weigh(bench, batch, self.lr * self.decay**index)

    def weigh(self, bench: Bench, batch: Batch, size: float) -> Outcome:
        """Move the weights by a batch of hard labels, each by ``size``."""
        teacher = bench.teacher
        assert isinstance(teacher, Ensemble)
        assert batch.targets is not None
        with torch.no_grad():
            answers = teacher.answers(bench.layout(batch.inputs))
        loss, gradient = weight_gradient(answers, batch.targets, teacher.weights)
        bench.require_finite(loss, self.name)
        teacher.weights.copy_(sign_step(teacher.weights, averaged(gradient), size))
        weights = zip(teacher.names, teacher.weights.tolist(), strict=True)
        named = {f"{self.name}/weight/{name}": weight for name, weight in weights}
        return Outcome({f"{self.name}/cross_entropy": loss, **named})
