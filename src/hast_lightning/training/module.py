"""The LightningModule: goes through the stages of a run, and knows what a checkpoint holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.optim import Optimizer

from hast_lightning.config import Config
from hast_lightning.core.batch import Progress
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.core.source import Source
from hast_lightning.core.stage import Outcome
from hast_lightning.errors import ConfigurationError, DivergenceError, MemoryLimitError
from hast_lightning.models.ensemble import KEPT
from hast_lightning.quantization.fake_quant import (
    ActivationMode,
    freeze_ranges,
    set_activation_mode,
)
from hast_lightning.runtime.loss_scaling import LossScaling
from hast_lightning.runtime.random_streams import random_streams, set_random_streams
from hast_lightning.runtime.ranks import (
    broadcast_parameters,
    gathered_objects,
    rank,
    rank_seed,
    world_size,
)
from hast_lightning.training.bench import PreparedBench
from hast_lightning.training.stepper import TrainerStepper


class ZeroShotQuantization(PreparedBench, LightningModule):
    """Goes through the stages of a method, one iteration a training step.

    It is the bench that stages work at (:class:`hast_lightning.core.stage.Bench`): it has the
    networks, the sources and the named optimizers. Student and teacher stay in evaluation mode
    throughout (a new student in floating point but for its own steps); sources and the student's
    parameters are all that trains. Checkpoints hold all
    that changes in a run, on every rank, and not the teacher.

    Args:
        config: A checked configuration.
        pretrained: The full-precision network; it becomes the teacher, and the student is made of
            it.
        sources: Where batches come from, by name, built.

    Attributes:
        iteration: Iterations done.
        outcome: What the last step measured and kept.

    Raises:
        UserError: the network cannot be quantized, or parts do not fit together.
    """

    def __init__(
        self, config: Config, pretrained: PretrainedNetwork, sources: Mapping[str, Source]
    ) -> None:
        super().__init__(config, pretrained, sources)
        self.automatic_optimization = False
        self.iteration = 0
        self.outcome = Outcome()
        self._steppers: dict[str, TrainerStepper] = {}
        # What a checkpoint holds of the optimizers until they are made again.
        self._saved_steppers: dict[str, Any] = {}
        # What it holds of this rank, until the first step after it takes it up.
        self._own: dict[str, Any] | None = None

    @property
    def source(self) -> Source:
        """Return the source that the last stage uses: what is shown, saved and held out."""
        return self.sources[self.config.main_source]

    @property
    def progress(self) -> Progress:
        """Return stage and step of the iteration that was just done (or is being done)."""
        last = self.agenda.iterations - 1
        return self.agenda.progress(min(max(self.iteration - 1, 0), last))

    # -- Lightning ------------------------------------------------------------------------

    def train(self, mode: bool = True) -> ZeroShotQuantization:
        """Keep student and teacher in evaluation mode, whatever Lightning asks for."""
        super().train(mode)
        self.student.eval()
        self.teacher.eval()
        return self

    def configure_optimizers(self) -> None:
        """Make none: stages make theirs when they begin."""

    def on_fit_start(self) -> None:
        """Give every rank noise and labels of its own, and all of them the same weights."""
        self.learner.passes.forget()
        if world_size() == 1:
            return
        torch.manual_seed(rank_seed(self.config.seed))
        for source in self.sources.values():
            source.part_ways()
        broadcast_parameters(self.student)
        for source in self.sources.values():
            if source.shared:
                broadcast_parameters(source)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Do one iteration: a step of the stage whose turn it is."""
        self._continue_own_state()
        name, step, total = self.agenda.progress(self.iteration)
        stage, bench = self.stages[name], self.bench
        try:
            if step == 1:
                stage.begin(bench)
            self.outcome = stage.step(bench, step - 1)
            if step == total:
                stage.end(bench)
        except FloatingPointError as error:
            raise self.divergence(str(error), self.iteration) from error
        except torch.OutOfMemoryError as error:
            key, size = stage.memory_key(bench)
            raise MemoryLimitError(
                f"out of memory at step {step} of {total} of stage {name} with {size} images at "
                f"once: lower {key}"
            ) from error
        self._log_scalars()
        self.iteration += 1

    def _log_scalars(self) -> None:
        """Log everything that was measured, at the run's own counter; no other place logs."""
        outcome, every = self.outcome, self.config.trainer.log_every_n_steps
        logged = outcome.milestone or self.agenda.is_logged(self.iteration, every)
        if not (outcome.scalars and logged):
            return
        scalars = {name: float(value) for name, value in outcome.scalars.items()}
        for name, (parts, values) in outcome.parts.items():
            scalars |= {f"{name}/{t}": v for t, v in zip(parts, values.tolist(), strict=True)}
        for logger in self.loggers:
            logger.log_metrics(scalars, step=self.iteration)

    # -- The bench ------------------------------------------------------------------------

    def stepper(self, name: str, make: Callable[[], Mapping[str, Optimizer]]) -> TrainerStepper:
        """Return the optimizers of that name, made when they are first asked for."""
        if name not in self._steppers:
            self._steppers[name] = TrainerStepper(self, name, make())
            saved = self._saved_steppers.pop(name, None)
            if saved is not None:
                self._steppers[name].load_state_dict(saved)
        return self._steppers[name]

    def release(self, name: str) -> None:
        """Forget the optimizers of that name, which no later step asks for."""
        self._steppers.pop(name, None)
        self._saved_steppers.pop(name, None)

    def layout(self, inputs: Tensor) -> Tensor:
        """Return ``inputs`` in the memory format of the run."""
        if self.config.trainer.channels_last and inputs.dim() == 4:
            return inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def freeze_ranges(self) -> None:
        """Fix the student's activation ranges, and quantize from now on."""
        freeze_ranges(self.student)
        self.ranges_frozen = True

    def require_finite(self, loss: Tensor, what: str) -> float:
        """Return the value of a loss.

        Raises:
            DivergenceError: it is NaN or infinite.
        """
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self.divergence(f"the {what} loss became {value}", self.iteration)
        return value

    # -- Checkpoints ----------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out the teacher, which the run loads from its own file; add what changes.

        Raises:
            DivergenceError: a weight is NaN or infinite; the checkpoint before stays then.
        """
        self.require_finite_weights()
        # Without the loops a resumed run is an epoch of the ticks that are left.
        checkpoint.pop("loops", None)
        # The trainer's own number counts from the resume only.
        checkpoint["global_step"] = self.iteration
        state = checkpoint["state_dict"]
        for key in [key for key in state if _is_loaded(key)]:
            del state[key]
        checkpoint["teacher_checksum"] = self.teacher_checksum
        checkpoint["optimizers"] = self._optimizer_states()
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
        state = self.state_dict()
        checkpoint["state_dict"] |= {k: v for k, v in state.items() if _is_loaded(k)}
        self._own = checkpoint["ranks"][rank()]
        self._saved_steppers = {**checkpoint["optimizers"], **self._own["optimizers"]}
        self.iteration = int(checkpoint["iteration"])
        self.ranges_frozen = bool(checkpoint["ranges_frozen"])
        if self.ranges_frozen:
            set_activation_mode(self.student, ActivationMode.QUANTIZE)

    def _optimizer_states(self) -> dict[str, Any]:
        """Return the states of all optimizers, made again since the resume or not yet."""
        made = {name: stepper.state_dict() for name, stepper in self._steppers.items()}
        return {**self._saved_steppers, **made}

    def _own_state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold of every rank, beside what all have in common."""
        own: dict[str, Any] = {"random_streams": random_streams(), "sources": {}, "optimizers": {}}
        if world_size() > 1:
            own["loss_scaling"] = self.loss_scaling.state_dict() if self.loss_scaling else None
            own["sources"] = {n: s.own_state() for n, s in self.sources.items() if not s.shared}
            names = {f"sources.{name}" for name in own["sources"]}
            states = self._optimizer_states().items()
            own["optimizers"] = {name: state for name, state in states if name in names}
            own["buffers"] = self._own_buffers()
        # Every rank would open what others send on the devices that it comes from.
        on_cpu: dict[str, Any] = move_data_to_device(own, torch.device("cpu"))
        return on_cpu

    def _own_buffers(self) -> dict[str, Any]:
        """Return what this rank's passes left in the student, in parts and in shared sources."""
        parameters = {name for name, _ in self.named_parameters()}
        others = ["teacher."] + [f"source_{n}." for n, s in self.sources.items() if not s.shared]
        return {
            name: value
            for name, value in self.state_dict().items()
            if name not in parameters and not name.startswith(tuple(others))
        }

    def _continue_own_state(self) -> None:
        """Take up this rank's state; in the first step, for the trainer draws numbers before it."""
        own, self._own = self._own, None
        if own is None:
            return
        for name, state in own["sources"].items():
            self.sources[name].set_own_state(state)
        self.load_state_dict(own.get("buffers", {}), strict=False)
        if self.loss_scaling is not None and own.get("loss_scaling"):
            self.loss_scaling.load_state_dict(own["loss_scaling"])
        set_random_streams(own["random_streams"])

    @property
    def loss_scaling(self) -> LossScaling | None:
        """Return what scales the losses; none where the precision needs no scaling."""
        plugin = self._trainer.precision_plugin if self._trainer is not None else None
        return plugin if isinstance(plugin, LossScaling) else None

    def found_files(self) -> dict[str, str]:
        """Return the texts that stages leave in the run folder so far, by name."""
        return {name: text for s in self.stages.values() for name, text in s.files().items()}

    def save_samples(self, path: Path) -> None:
        """Write the main source to a file that its ``load`` accepts.

        Raises:
            DivergenceError: a weight is NaN or infinite; nothing is written then.
        """
        self.require_finite_weights()
        self.source.save(path)

    # -- Errors ---------------------------------------------------------------------------

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
        """Return the error that says where training stopped making sense."""
        stage, step, total = self.agenda.progress(iteration)
        return DivergenceError(
            f"{what} at step {step} of {total} of stage {stage}: lower the learning rate or the "
            "loss weights; what was saved before is kept"
        )


def _is_loaded(key: str) -> bool:
    """Return whether a tensor is the teacher's, from its files; not the weights of its members."""
    return key.startswith("teacher.") and key != f"teacher.{KEPT}"
