"""The whole method on one page: generator steps and student steps."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from hast_lightning.config import Config
from hast_lightning.distillation.optimizer import build_optimizer
from hast_lightning.distillation.promotion import promote
from hast_lightning.distillation.terms import (
    Answers,
    DistillationLoss,
    DistillationPair,
    build_terms,
    distillation_loss,
)
from hast_lightning.errors import MemoryLimitError, ModelError
from hast_lightning.loss_scaling import spoil_gradients
from hast_lightning.models.graph import expose, trace
from hast_lightning.models.taps import select_taps
from hast_lightning.models.teacher import FrozenTeacher
from hast_lightning.models.zoo import PretrainedNetwork
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.fake_quant import (
    ActivationMode,
    freeze_ranges,
    held_weights,
    set_activation_mode,
)
from hast_lightning.quantization.learned import LR_MULTIPLIER, parameter_groups
from hast_lightning.quantization.spec import QuantizationSpec
from hast_lightning.ranks import average_gradients
from hast_lightning.resumable import (
    CALIBRATOR_OPTIMIZER,
    SOURCE_OPTIMIZER,
    STUDENT_OPTIMIZER,
    ResumableModule,
)
from hast_lightning.schedule import Action, Schedule, StageProgress, learning_rate_factor
from hast_lightning.synthesis.factory import build_calibrator
from hast_lightning.synthesis.objectives import SynthesisObjective
from hast_lightning.synthesis.source import SampleSource
from hast_lightning.synthesis.transforms import Augmentation

_log = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]


class ZeroShotQuantization(ResumableModule):
    """Alternates steps of a sample source with steps of a quantized student.

    HAST (Li et al., CVPR 2023) and, with other weights and switches, its relatives. An
    iteration does what the schedule says for its number:

    - *synthesize*: the source improves a batch of images against the frozen teacher
      (BatchNorm statistics and hardness-weighted cross-entropy);
    - *calibrate*: the student's activation ranges observe a batch;
    - *distill*: the student learns from the teacher on a batch and, perturbed to be harder,
      on the same batch again.

    Student and teacher stay in evaluation mode throughout; the source and the student's
    parameters are all that trains.

    Args:
        config: A checked configuration.
        pretrained: The full-precision network; it becomes the teacher and, converted, the
            student.
        source: Where images come from.
        schedule: Which step comes when.

    Raises:
        ModelError: the network cannot be quantized, or has no feature taps to align.
    """

    def __init__(
        self,
        config: Config,
        pretrained: PretrainedNetwork,
        source: SampleSource,
        schedule: Schedule,
    ) -> None:
        super().__init__(pretrained.checksum)
        self.automatic_optimization = False
        self.config, self.schedule = config, schedule
        self.terms = build_terms(config.distillation)
        spec = QuantizationSpec.from_config(config.quantizer)
        self.student = convert(pretrained.network, spec)
        self.taps = self._find_taps(pretrained) if "alignment" in self.terms else []
        self.teacher = FrozenTeacher(pretrained.network, self.taps)
        self.source = source
        self.calibrator = build_calibrator(
            config.synthesis, pretrained.input_shape, pretrained.num_classes
        )
        # In a tuple, so that it is not registered: it shares the student's layers, which
        # would be saved twice.
        self._student_with_features = (expose(self.student, self.taps),)
        self._build_objectives()
        self._prepare_layout()
        self.micro_batch = config.trainer.micro_batch
        self._forget_measurements()

    def _forget_measurements(self) -> None:
        """What an earlier step measured must not be logged again as if it were this one's."""
        self.scalars: dict[str, Tensor | float] = {}
        # By the same names: what is a sum over blocks, as (blocks,).
        self.block_losses: dict[str, Tensor] = {}
        # What the networks said to the batch ("") and to its promoted copy, part by part.
        self.answers: dict[str, list[Answers]] = {}

    def _find_taps(self, pretrained: PretrainedNetwork) -> list[str]:
        taps = select_taps(trace(pretrained.network), self.config.model.taps)
        if not taps:
            raise ModelError(
                "no feature taps were found in the network (no residual additions or "
                "depthwise-separable blocks): name them with model.taps, or set "
                "distillation.alignment.enabled=false"
            )
        return taps

    def _build_objectives(self) -> None:
        synthesis, calibration = self.config.synthesis, self.config.synthesis.calibration
        hardness = synthesis.hardness
        self._synthesis_objective = SynthesisObjective(
            hardness.beta, hardness.gamma if hardness.enabled else 0.0, synthesis.bns_weight
        )
        self._calibration_objective = SynthesisObjective(
            calibration.cross_entropy_weight, 0.0, calibration.bns_weight
        )
        self._augment_synthesis = Augmentation(synthesis.augmentation)
        self._augment_student = Augmentation(self.config.distillation.augmentation)

    def _prepare_layout(self) -> None:
        """The options that change speed and not results."""
        if self.config.trainer.channels_last:
            self.student.to(memory_format=torch.channels_last)
            self.teacher.to(memory_format=torch.channels_last)
        if self.config.trainer.compile:
            self.teacher.compile_passes()
            self._student_with_features[0].compile()

    # -- Lightning ------------------------------------------------------------------------

    def train(self, mode: bool = True) -> ZeroShotQuantization:
        """Keep student and teacher in evaluation mode, whatever Lightning asks for."""
        super().train(mode)
        self.student.eval()
        self.teacher.eval()
        return self

    def configure_optimizers(self) -> list[Optimizer]:
        """Source, student and, where there is one, the calibration generator: in this order."""
        optimizer = self.config.distillation.optimizer
        groups = parameter_groups(
            self.student, optimizer.weight_decay, self.config.quantizer.step_lr_multiplier
        )
        optimizers = [self.source.build_optimizer(), build_optimizer(optimizer, groups)]
        return optimizers + ([self.calibrator.build_optimizer()] if self.calibrator else [])

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One iteration: every action that the schedule has for it."""
        self.continue_own_state()
        self._forget_measurements()
        proposal: Batch | None = None
        for action in self.schedule.actions(self.iteration):
            proposal = self._act(action, proposal)
        self._log_scalars()
        self.iteration += 1

    def _act(self, action: Action, proposal: Batch | None) -> Batch | None:
        """Do one thing; returns the batch that the next one may use."""
        try:
            if action is Action.SYNTHESIZE:
                return self._synthesize()
            if action is Action.CALIBRATE:
                self._calibrate(proposal)
            elif action is Action.FREEZE_RANGES:
                self._freeze_ranges()
            else:
                self._distill(proposal)
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory(action) from error
        return proposal

    @property
    def progress(self) -> StageProgress:
        """Stage and step of the iteration that was just done (or is being done)."""
        last = self.schedule.iterations - 1
        return self.schedule.progress(min(max(self.iteration - 1, 0), last))

    @property
    def stage_totals(self) -> dict[str, int]:
        """Iterations of each stage of this run, in order."""
        return self.schedule.stages

    # -- The three steps ------------------------------------------------------------------

    def _synthesize(self) -> Batch:
        """Generator step: improve a batch against the teacher; returns it, detached."""
        return self._improve(
            self.source,
            self.stepping_optimizer(SOURCE_OPTIMIZER),
            self._synthesis_objective,
            "synthesis",
        )

    def _calibrate(self, proposal: Batch | None) -> None:
        """Let the student's activation ranges observe a batch."""
        if self.calibrator is not None:
            objective = self._calibration_objective
            images, _ = self._improve(
                self.calibrator,
                self.stepping_optimizer(CALIBRATOR_OPTIMIZER),
                objective,
                "calibration",
            )
        else:
            images, _ = self._batch(proposal, self.config.synthesis.calibration.batch_size)
        set_activation_mode(self.student, ActivationMode.OBSERVE)
        with torch.no_grad(), held_weights(self.student):
            self.student(self._layout(images))

    def _freeze_ranges(self) -> None:
        freeze_ranges(self.student)
        self.ranges_frozen = True

    def _distill(self, proposal: Batch | None) -> None:
        """Student step: learn from the teacher on a batch and on its promoted copy.

        One backward pass gives both the gradient of the images, which makes the
        perturbation, and the first half of the parameters' gradients.
        """
        config = self.config.distillation
        images, labels = self._batch(proposal, config.batch_size)
        images = self._layout(self._augment_student(images)).detach()
        optimizer = self.stepping_optimizer(STUDENT_OPTIMIZER)
        self._accumulate(images, labels, optimizer)
        self._set_learning_rate(optimizer)
        average_gradients(self.student.parameters())
        self.unscale(optimizer)
        if config.optimizer.clip_norm is not None:
            self.scalars["distillation/gradient_norm"] = nn.utils.clip_grad_norm_(
                self.student.parameters(), config.optimizer.clip_norm
            )
        optimizer.step()
        self.scalars.update(self.scaling_scalars("distillation"))

    def _accumulate(self, images: Tensor, labels: Tensor, optimizer: LightningOptimizer) -> None:
        """The gradients of the whole batch, by as many images at once as there is room for.

        Every term of the loss is a mean over images, so the parts add up to the whole.
        """
        size = min(self.micro_batch or len(images), len(images))
        # Nothing of an attempt that memory was too small for counts.
        self.scalars = {n: v for n, v in self.scalars.items() if not n.startswith("distillation/")}
        self.block_losses, self.answers = {}, {}
        optimizer.zero_grad()
        try:
            with held_weights(self.student):
                parts = zip(torch.split(images, size), torch.split(labels, size), strict=True)
                for part, part_labels in parts:
                    self._backward_both(part, part_labels, len(part) / len(images))
        except torch.OutOfMemoryError:
            if not self.config.trainer.halve_on_out_of_memory or size == 1:
                raise
            self.micro_batch = (size + 1) // 2
            _log.warning("out of memory with %d images: going on with %d", size, self.micro_batch)
            self._accumulate(images, labels, optimizer)

    def _backward_both(self, images: Tensor, labels: Tensor, share: float) -> None:
        """Add the gradients on some images and on their promoted copies."""
        promotion = self.config.distillation.promotion
        images = images.detach().requires_grad_(promotion.enabled)
        self._backward_student(images, labels, share, "")
        if promotion.enabled:
            assert images.grad is not None
            if self.loss_scaling is not None and not bool(images.grad.isfinite().all()):
                # It also comes through the teacher; the student's gradients may be finite.
                spoil_gradients(self.student)
                return
            harder = promote(images, images.grad, promotion.eps)
            self._backward_student(harder, labels, share, "_promoted")

    def _backward_student(self, images: Tensor, labels: Tensor, share: float, suffix: str) -> None:
        """Add ``share`` times the gradients of the student's loss to those already there."""
        # The teacher's graph is needed only where the gradient goes on to the images.
        with torch.set_grad_enabled(images.requires_grad):
            teacher_logits, teacher_features = self.teacher.features(images)
        student_logits, student_features = self._student_with_features[0](images)
        pair = DistillationPair(
            student_logits, teacher_logits, student_features, teacher_features, labels
        )
        loss = distillation_loss(self.terms, pair)
        self._require_finite(loss.total, "distillation")
        self._measure(loss, share, suffix)
        self.answers.setdefault(suffix, []).append(pair.answers())
        self.manual_backward(loss.total if share == 1 else share * loss.total)

    def _measure(self, loss: DistillationLoss, share: float, suffix: str) -> None:
        """Add ``share`` times the parts of a loss to those of the step."""
        for name, value in loss.values.items():
            key = f"distillation/{name}{suffix}"
            self.scalars[key] = self.scalars.get(key, 0.0) + share * value
        for name, blocks in loss.blocks.items():
            key = f"distillation/{name}{suffix}"
            self.block_losses[key] = self.block_losses.get(key, 0.0) + share * blocks

    # -- Their parts ----------------------------------------------------------------------

    def _improve(
        self,
        source: SampleSource,
        optimizer: LightningOptimizer,
        objective: SynthesisObjective,
        name: str,
    ) -> Batch:
        images, labels = source.propose()
        # Crops and flips are HAST's for the main source; the calibrator sees its images as made.
        seen = self._augment_synthesis(images) if source is self.source else images
        logits, statistics = self.teacher.statistics(self._layout(seen))
        loss, values = objective(logits, labels, statistics)
        loss_value = self._require_finite(loss, name)
        optimizer.zero_grad()
        self.manual_backward(loss)
        if source.shared and isinstance(source, nn.Module):
            average_gradients(source.parameters())
        optimizer.step()
        scaling = self.scaling_scalars(name)
        try:
            source.improved(loss_value, optimizer.optimizer)
        except FloatingPointError as error:
            raise self.divergence(str(error), self.iteration) from error
        self.scalars.update({f"{name}/{key}": value for key, value in values.items()})
        self.scalars.update(scaling)
        return images.detach(), labels

    def _batch(self, proposal: Batch | None, batch_size: int) -> Batch:
        """What the student sees: what the generator has just made, or a draw from the bank."""
        if proposal is not None and self.config.synthesis.source == "generator":
            return proposal
        return self.source.sample(batch_size)

    def _layout(self, images: Tensor) -> Tensor:
        if self.config.trainer.channels_last:
            return images.contiguous(memory_format=torch.channels_last)
        return images

    def _set_learning_rate(self, optimizer: LightningOptimizer) -> None:
        step = self.schedule.completed(Action.DISTILL, self.iteration)
        factor = learning_rate_factor(
            self.config.schedule.learning_rate, step, self.schedule.student_steps
        )
        rate = self.config.distillation.optimizer.lr * factor
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get(LR_MULTIPLIER, 1.0)
        self.scalars["distillation/learning_rate"] = rate

    def _require_finite(self, loss: Tensor, stage: str) -> float:
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self.divergence(f"the {stage} loss became {value}", self.iteration)
        return value

    def _out_of_memory(self, action: Action) -> MemoryLimitError:
        config = self.config
        keys = {
            Action.SYNTHESIZE: f"synthesis.{'bank' if not self.source.shared else 'generator'}"
            ".batch_size",
            Action.CALIBRATE: "synthesis.calibration.batch_size",
        }
        lower = keys.get(action, "trainer.micro_batch")
        sizes = {
            "synthesis.bank.batch_size": config.synthesis.bank.batch_size,
            "synthesis.generator.batch_size": config.synthesis.generator.batch_size,
            "synthesis.calibration.batch_size": config.synthesis.calibration.batch_size,
            "trainer.micro_batch": self.micro_batch or config.distillation.batch_size,
        }
        stage, step, total = self.schedule.progress(self.iteration)
        return MemoryLimitError(
            f"out of memory at step {step} of {total} of stage {stage} with {sizes[lower]} "
            f"images at once: lower {lower}"
        )

    def _log_scalars(self) -> None:
        """The one place that logs: everything that was measured, at the run's own counter."""
        every = self.config.trainer.log_every_n_steps
        if not (self.scalars and self.schedule.is_logged(self.iteration, every)):
            return
        scalars = {name: float(value) for name, value in self.scalars.items()}
        for name, losses in self.block_losses.items():
            scalars |= {f"{name}/{t}": v for t, v in zip(self.taps, losses.tolist(), strict=True)}
        for logger in self.loggers:
            logger.log_metrics(scalars, step=self.iteration)
