"""What of a run is in a checkpoint, and how its processes begin and take it up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn

from hast_lightning.config import Config
from hast_lightning.errors import ConfigurationError, DivergenceError
from hast_lightning.loss_scaling import LEAST_SCALE, LossScaling
from hast_lightning.quantization.fake_quant import ActivationMode, set_activation_mode
from hast_lightning.random_streams import random_streams, set_random_streams
from hast_lightning.ranks import broadcast_parameters, gathered_objects, rank, rank_seed, world_size
from hast_lightning.schedule import Schedule
from hast_lightning.synthesis.generator import ConditionalGenerator
from hast_lightning.synthesis.source import SampleSource

SOURCE_OPTIMIZER, STUDENT_OPTIMIZER, CALIBRATOR_OPTIMIZER = range(3)
"""Positions of the optimizers, by which checkpoints restore them."""


class ResumableModule(LightningModule):
    """A module whose checkpoints hold all that changes in a run, on every rank.

    Args:
        teacher_checksum: SHA-256 of the weights that are not in the checkpoints.

    Attributes:
        iteration: Iterations done.
        ranges_frozen: Whether the student is calibrated.
    """

    config: Config
    schedule: Schedule
    student: nn.Module
    source: SampleSource
    calibrator: ConditionalGenerator | None

    def __init__(self, teacher_checksum: str) -> None:
        super().__init__()
        # The teacher is not in checkpoints, so its keys are missing when one is loaded.
        self.strict_loading = False
        self.teacher_checksum = teacher_checksum
        self.iteration = 0
        self.ranges_frozen = False
        # What a checkpoint holds of this rank, until the first step after it takes it up.
        self._own: dict[str, Any] | None = None

    def on_fit_start(self) -> None:
        """Give every rank noise and labels of its own, and all of them the same weights."""
        if world_size() == 1:
            return
        torch.manual_seed(rank_seed(self.config.seed))
        self.source.part_ways()
        for part in (self.student, self.calibrator, self.source if self.source.shared else None):
            if isinstance(part, nn.Module):
                broadcast_parameters(part)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out the teacher, which the run loads from its own file; add the counters.

        Raises:
            DivergenceError: a weight is NaN or infinite; the checkpoint before stays then.
        """
        self.require_finite_weights()
        # Without the loops a resumed run is an epoch of the ticks that are left.
        checkpoint.pop("loops", None)
        # The trainer's own number counts every optimizer's steps, and from the resume only.
        checkpoint["global_step"] = self.iteration
        state = checkpoint["state_dict"]
        for key in [key for key in state if key.startswith("teacher.")]:
            del state[key]
        checkpoint["teacher_checksum"] = self.teacher_checksum
        checkpoint["ranks"] = gathered_objects(self._own_state())
        checkpoint["iteration"] = self.iteration
        checkpoint["ranges_frozen"] = self.ranges_frozen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counters and what they imply.

        Raises:
            ConfigurationError: as many processes as there were are not there.
        """
        if len(checkpoint["ranks"]) != world_size():
            raise ConfigurationError(
                f"the checkpoint was made by {len(checkpoint['ranks'])} processes and cannot be "
                f"continued by {world_size()}"
            )
        self._own = checkpoint["ranks"][rank()]
        self.iteration = int(checkpoint["iteration"])
        self.ranges_frozen = bool(checkpoint["ranges_frozen"])
        if self.ranges_frozen:
            set_activation_mode(self.student, ActivationMode.QUANTIZE)

    def _own_state(self) -> dict[str, Any]:
        """What a checkpoint must hold of every rank, beside what all have in common."""
        own: dict[str, Any] = {"random_streams": random_streams(), "source": {}, "optimizer": {}}
        if world_size() > 1 and not self.source.shared:
            own["source"] = self.source.own_state()
            own["optimizer"] = self.numbered_optimizer(SOURCE_OPTIMIZER).optimizer.state_dict()
            own["loss_scaling"] = self.loss_scaling.state_dict() if self.loss_scaling else None
        return own

    def continue_own_state(self) -> None:
        """Not before the first step: the trainer draws numbers of its own on its way there."""
        if self._own is None:
            return
        if self._own["source"]:
            self.source.set_own_state(self._own["source"])
            optimizer = self.numbered_optimizer(SOURCE_OPTIMIZER).optimizer
            optimizer.load_state_dict(self._own["optimizer"])
            if self.loss_scaling is not None:
                self.loss_scaling.load_state_dict(self._own["loss_scaling"])
        set_random_streams(self._own["random_streams"])
        self._own = None

    def numbered_optimizer(self, position: int) -> LightningOptimizer:
        """The optimizer at a position of what ``configure_optimizers`` returned."""
        optimizers = self.optimizers(use_pl_optimizer=True)
        assert isinstance(optimizers, list)
        optimizer = optimizers[position]
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer

    @property
    def loss_scaling(self) -> LossScaling | None:
        """What scales the losses; none where the precision needs no scaling."""
        plugin = self._trainer.precision_plugin if self._trainer is not None else None
        return plugin if isinstance(plugin, LossScaling) else None

    def stepping_optimizer(self, position: int) -> LightningOptimizer:
        """The optimizer of the step that begins here, for which losses are scaled from now on."""
        if self.loss_scaling is not None:
            self.loss_scaling.select(position)
        return self.numbered_optimizer(position)

    def unscale(self, optimizer: LightningOptimizer) -> None:
        """Give the gradients their true length, where the loss was scaled."""
        if self.loss_scaling is not None:
            self.loss_scaling.unscale(optimizer.optimizer)

    def scaling_scalars(self, stage: str) -> dict[str, float]:
        """Scale of the step that was just done and how many were left out so far, for the log.

        Raises:
            DivergenceError: no scale makes the gradients finite.
        """
        scaling = self.loss_scaling
        if scaling is None:
            return {}
        if scaling.scale < LEAST_SCALE:
            what = f"the gradients of {stage} stay NaN or infinite whatever the loss scale"
            raise self.divergence(what, self.iteration)
        return {
            f"{stage}/loss_scale": scaling.scale,
            f"{stage}/skipped_steps": float(scaling.skipped_steps),
        }

    def save_samples(self, path: Path) -> None:
        """Write the source to a file that ``synthesis.load`` accepts.

        Raises:
            DivergenceError: a weight is NaN or infinite; nothing is written then.
        """
        self.require_finite_weights()
        self.source.save(path)

    def require_finite_weights(self) -> None:
        """Notice what the last step did to the weights, which no loss has shown yet.

        Raises:
            DivergenceError: a weight is NaN or infinite.
        """
        for name, parameter in self.named_parameters():
            if not bool(parameter.isfinite().all()):
                what = f"{name} became NaN or infinite"
                raise self.divergence(what, max(self.iteration - 1, 0))

    def divergence(self, what: str, iteration: int) -> DivergenceError:
        """The error that says where training stopped making sense."""
        stage, step, total = self.schedule.progress(iteration)
        return DivergenceError(
            f"{what} at step {step} of {total} of stage {stage}: lower the learning rate or the "
            "loss weights; what was saved before is kept"
        )
