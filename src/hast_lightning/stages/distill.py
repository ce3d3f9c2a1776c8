"""The stage that trains the student: transforms, terms, and a hook before the step."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field

import torch
from omegaconf import MISSING
from torch import Tensor, nn, optim

from hast_lightning.core.batch import Answers, Batch, Needs, Progress
from hast_lightning.core.checks import require_range
from hast_lightning.core.part import part
from hast_lightning.core.stage import Bench, Hook, Outcome, Stepper
from hast_lightning.core.term import Term
from hast_lightning.core.transform import Transform
from hast_lightning.errors import ConfigurationError
from hast_lightning.quantization.adaround import AdaptiveWeightQuantizer
from hast_lightning.quantization.fake_quant import held_weights, quantized_layers
from hast_lightning.quantization.learned import LR_MULTIPLIER, parameter_groups
from hast_lightning.runtime.ranks import average_gradients
from hast_lightning.stages.learning_rate import LearningRate
from hast_lightning.stages.loss import (
    Loss,
    active_terms,
    active_transforms,
    bind_terms,
    see,
    transformed,
    weighted_loss,
)
from hast_lightning.stages.optimizer import Optimizer
from hast_lightning.stages.reading import ReadingStage, require_calibrated, require_source

_log = logging.getLogger(__name__)


@part("stage", "distill")
class Distill(ReadingStage):
    """Trains the student on batches of a source, and on what transforms by gradient make of them.

    One backward pass gives both the gradient of the inputs, which such a transform is made from,
    and the first half of the parameters' gradients. A new student in floating point is in training
    mode meanwhile, so that its BatchNorms learn their statistics; those of others are constants.
    """

    steps: int = 29400
    """Student steps; 0: none."""
    batch_size: int = 64
    """Samples of a step, on each device."""
    terms: dict[str, Term] = field(default_factory=dict)
    """What the student is trained for."""
    transforms: dict[str, Transform] = field(default_factory=dict)
    """What changes the samples, in order."""
    optimizer: Optimizer = MISSING
    learning_rate: LearningRate = MISSING
    hook: Hook | None = None
    """What acts between the backward pass and the step; null: nothing."""

    trains_student = True
    float_student = True
    several_outputs = True

    def __post_init__(self) -> None:
        require_range("steps", self.steps, 0)
        require_range("batch_size", self.batch_size, 1)
        if not active_terms(self.terms):
            raise ConfigurationError("terms: none has a weight, so that nothing would be learned")

    @property
    def all_terms(self) -> Mapping[str, Mapping[str, Term]]:
        """Return the terms that count."""
        return {self.name: active_terms(self.terms)}

    def bind(self, bench: Bench) -> None:
        """Check the source, and what terms, transforms and the hook need.

        Raises:
            UserError: something does not fit together.
        """
        require_source(bench, self.source, self.key)
        require_calibrated(bench, self.key, "trains")
        layers = [layer for _, layer in quantized_layers(bench.student)]
        if any(isinstance(each.weight_quantizer, AdaptiveWeightQuantizer) for each in layers):
            raise ConfigurationError(
                f"{self.key} trains no weight with rounding@quantizer.rounding=adaptive, which a "
                "stage reconstruct alone learns: choose rounding@quantizer.rounding=nearest"
            )
        terms, transforms = active_terms(self.terms), active_transforms(self.transforms)
        for transform in transforms.values():
            transform.bind(bench.teacher, bench.learner)
        needs = bind_terms(
            terms, bench.teacher, bench.learner, bench.sources[self.source], f"{self.key}.terms"
        )
        self._whole = self._require_whole(terms, bench)
        self._needs: Needs = needs._replace(student=needs.student or ())
        self._terms, self._transforms = terms, transforms
        if self.hook is not None:
            if bench.float_student and not self.hook.float_student:
                raise ConfigurationError(
                    f"{self.key}.hook={self.hook.kind} is for a student that is quantized"
                )
            self.hook.bind(bench)
        # Registered, so that what they hold moves to the device and into checkpoints.
        hooks = [] if self.hook is None else [self.hook]
        self._parts = nn.ModuleList([*terms.values(), *transforms.values(), *hooks])

    def _require_whole(self, terms: Mapping[str, Term], bench: Bench) -> bool:
        """Return whether a term, or a BatchNorm that learns, looks at the batch as a whole.

        Raises:
            ConfigurationError: one does, and batches are to be taken apart.
        """
        whole = [
            f"the loss of {self.key}.terms.{name}, {term.kind}, is no mean over samples, so that "
            "those of parts do not add up to it"
            for name, term in terms.items()
            if not term.by_sample
        ]
        if bench.float_student:
            whole.append("BatchNorms of a new student learn from whole batches")
        if whole and bench.micro_batch is not None and bench.micro_batch < self.batch_size:
            raise ConfigurationError(
                f"trainer.micro_batch={bench.micro_batch}: {whole[0]}; leave it out and lower "
                f"{self.key}.batch_size={self.batch_size}"
            )
        return bool(whole)

    def length(self, bench: Bench) -> int:
        """Return the steps."""
        return self.steps

    def step(self, bench: Bench, index: int) -> Outcome:
        """Train on one batch."""
        return self.train_on(bench, index, self.steps, None)

    def train_on(self, bench: Bench, index: int, total: int, proposed: Batch | None) -> Outcome:
        """Train on what was just proposed, or on a sample.

        Args:
            bench: Networks and sources.
            index: Number of the step, from 0.
            total: Steps in all, which the learning rate follows.
            proposed: The batch that a synthesis step has just handed on; none: a sample is taken.
        """
        if proposed is None:
            proposed = bench.sources[self.source].sample(self.batch_size)
        batch = transformed(proposed, self._transforms)
        batch = batch._replace(inputs=bench.layout(batch.inputs)).detach()
        stepper = bench.stepper(self.key, lambda: self._optimizers(bench))
        outcome = self._accumulate(bench, batch, stepper, Progress(self.name, index + 1, total))
        rate = self.optimizer.lr * self.learning_rate.multiple(index, total)
        for group in stepper.optimizers["student"].param_groups:
            group["lr"] = rate * group.get(LR_MULTIPLIER, 1.0)
        outcome.scalars[f"{self.name}/learning_rate"] = rate
        average_gradients(bench.student.parameters())
        stepper.unscale()
        if self.optimizer.clip_norm is not None:
            outcome.scalars[f"{self.name}/gradient_norm"] = nn.utils.clip_grad_norm_(
                bench.student.parameters(), self.optimizer.clip_norm
            )
        if self.hook is not None:
            found = self.hook(bench.student, stepper, rate)
            outcome.scalars.update({f"{self.name}/{name}": value for name, value in found.items()})
        stepper.step()
        outcome.scalars.update(stepper.scalars(self.name))
        return outcome

    def _optimizers(self, bench: Bench) -> Mapping[str, optim.Optimizer]:
        groups = parameter_groups(bench.student, self.optimizer.weight_decay)
        if self.hook is not None:
            groups = self.hook.groups(bench.student, groups)
        return {"student": self.optimizer.build(groups)}

    def _accumulate(
        self, bench: Bench, batch: Batch, stepper: Stepper, progress: Progress
    ) -> Outcome:
        """Gather the gradients of the whole batch, by as many samples as there is room for.

        Where every term of the loss is a mean over samples, the parts add up to the whole; else the
        batch stays whole.
        """
        count = len(batch.inputs)
        size = count if self._whole else min(bench.micro_batch or count, count)
        outcome = Outcome()
        stepper.zero_grad()
        try:
            with held_weights(bench.student), _learning(bench):
                for some in batch.split(size):
                    share = _share(some, batch)
                    self._backward_all(bench, some, share, stepper, progress, outcome)
        except torch.OutOfMemoryError:
            if not bench.halve_on_out_of_memory or self._whole or size == 1:
                raise
        else:
            return outcome
        # Behind the exception, which holds on to all that the attempt had in memory. Nothing of it
        # counts.
        bench.micro_batch = (size + 1) // 2
        _log.warning("out of memory with %d images: going on with %d", size, bench.micro_batch)
        return self._accumulate(bench, batch, stepper, progress)

    def _backward_all(
        self,
        bench: Bench,
        batch: Batch,
        share: float,
        stepper: Stepper,
        progress: Progress,
        outcome: Outcome,
    ) -> None:
        """Add the gradients on some samples and on what transforms by gradient make of them."""
        by_gradient = [t for t in self._transforms.values() if t.by_gradient]
        inputs = batch.inputs.detach().requires_grad_(bool(by_gradient))
        batch = batch._replace(inputs=inputs)
        self._backward(bench, batch, share, stepper, progress, outcome, "")
        for transform in by_gradient:
            assert inputs.grad is not None
            if stepper.scaled and not bool(inputs.grad.isfinite().all()):
                # It also comes through the teacher; the student's gradients may be finite.
                spoil_gradients(bench.student)
                return
            harder = transform(batch, inputs.grad)
            self._backward(bench, harder, share, stepper, progress, outcome, transform.mark)

    def _backward(
        self,
        bench: Bench,
        batch: Batch,
        share: float,
        stepper: Stepper,
        progress: Progress,
        outcome: Outcome,
        mark: str,
    ) -> None:
        """Add ``share`` times the gradients of the student's loss to those already there."""
        # The teacher's graph is needed only where the gradient goes on to the inputs.
        with torch.set_grad_enabled(batch.inputs.requires_grad):
            seen = see(batch, self._needs, bench.teacher, None, progress)
        student = bench.learner.trace(batch.inputs, self._needs.student or ())
        seen = seen._replace(student=student, mark=mark)
        loss = weighted_loss(self._terms, seen)
        bench.require_finite(loss.total, self.name)
        self._measure(loss, share, mark, outcome)
        answers = Answers(student.logits.detach(), seen.teacher.logits.detach(), batch.detach())
        outcome.answers.setdefault(mark, []).append(answers)
        stepper.backward(loss.total if share == 1 else share * loss.total)

    def _measure(self, loss: Loss, share: float, mark: str, outcome: Outcome) -> None:
        """Add ``share`` times the parts of a loss to those of the step."""
        for name, value in loss.values.items():
            key = f"{self.name}/{name}{mark}"
            outcome.scalars[key] = outcome.scalars.get(key, 0.0) + share * value
        for name, (names, summands) in loss.parts.items():
            key = f"{self.name}/{name}{mark}"
            before: Tensor | float = outcome.parts[key][1] if key in outcome.parts else 0.0
            outcome.parts[key] = (names, before + share * summands)

    def memory_key(self, bench: Bench) -> tuple[str, int]:
        """Return the micro-batch, or the batch where a term looks at the whole of it."""
        if self._whole:
            return f"{self.key}.batch_size", self.batch_size
        return "trainer.micro_batch", bench.micro_batch or self.batch_size


@contextmanager
def _learning(bench: Bench) -> Iterator[None]:
    """Have BatchNorms of a new student normalize by the batch, and learn what they will need."""
    bench.student.train(bench.float_student)
    try:
        yield
    finally:
        bench.student.eval()


def _share(some: Batch, batch: Batch) -> float:
    """Return the share of a batch's loss that some of its samples have."""
    if batch.weights is None or some.weights is None:
        return len(some.inputs) / len(batch.inputs)
    whole = batch.weights.sum()
    return float(some.weights.sum() / whole) if whole else 0.0


def spoil_gradients(module: nn.Module) -> None:
    """Have the step left out that these gradients are for, on every rank that averages them."""
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad.fill_(float("inf"))
            return
