"""The student after each stage, kept until the end of the run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from hast_lightning.core.source import Source
from hast_lightning.errors import ConfigurationError, DataError, StorageError
from hast_lightning.safeguard.reference import judging_noise, statistics_distance
from hast_lightning.training.module import ZeroShotQuantization

_log = logging.getLogger(__name__)

PATTERN = ".after-{}.pt"
"""What the file of a stage is called; hidden, and gone when the run has ended."""


class StudentStates(Callback):
    """Keeps the student behind every stage that changes it, and looks at finished samples.

    A stage that calibrates, or that changes bits, makes another student of the same network: what
    was kept before is forgotten then.

    Args:
        folder: Of the run.
        images: Samples of a source that are looked at.

    Attributes:
        statistics: BatchNorm statistics loss of each source's samples when a stage that improves
            it ended, and of noise, by name.
    """

    def __init__(self, folder: Path, images: int) -> None:
        self._folder = folder
        self._images = images
        self.statistics: dict[str, float] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Act at the end of a stage."""
        assert isinstance(pl_module, ZeroShotQuantization)
        stage, step, total = pl_module.progress
        if step < total:
            return
        leg = pl_module.agenda.leg(stage)
        for name in leg.improves:
            self._look_at(pl_module, name)
        if (leg.begins_anew or leg.trains_student) and trainer.is_global_zero:
            if leg.begins_anew:
                forget_states(self._folder)
            if pl_module.iteration < pl_module.agenda.iterations:
                self._save(pl_module, stage)

    def _save(self, module: ZeroShotQuantization, stage: str) -> None:
        path = self._folder / PATTERN.format(stage)
        try:
            torch.save(module.student.state_dict(), path)
        # torch's writer says that the disk is full with a RuntimeError.
        except (OSError, RuntimeError) as error:
            raise StorageError(
                f"the student after stage {stage} could not be written to {path}: {error}"
            ) from error

    def _look_at(self, module: ZeroShotQuantization, name: str) -> None:
        """Compare a source's samples with noise, by the statistics that the teacher expects."""
        inputs = _samples(module.sources[name], self._images)
        if inputs is None:
            return
        found = statistics_distance(module.teacher, module.layout(inputs))
        if found is None:
            return
        generator = torch.Generator().manual_seed(0)
        network = module.teacher.pretrained
        noise = network.inputs_of(judging_noise(network, len(inputs), generator)).to(inputs.device)
        distance = statistics_distance(module.teacher, module.layout(noise))
        assert distance is not None
        self.statistics |= {name: found, "noise": distance}
        line = worse_than_noise({name: found, "noise": distance})
        if line and _teaches(module, name):
            _log.warning("%s", line)

    def state_dict(self) -> dict[str, Any]:
        """Return what was found, for the checkpoint."""
        return {"statistics": dict(self.statistics)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what was found before."""
        self.statistics = dict(state_dict["statistics"])


def _teaches(module: ZeroShotQuantization, name: str) -> bool:
    """Return whether a student is trained on a source; one that calibrates finds ranges alone."""
    return any(stage.trains_student and name in stage.reads for stage in module.stages.values())


def _samples(source: Source, count: int) -> torch.Tensor | None:
    """Return samples of a source; none where it has none yet."""
    with contextlib.suppress(ConfigurationError, DataError):
        return source.collect(count).inputs
    return None


def worse_than_noise(statistics: Mapping[str, float]) -> str:
    """Return what to say of sources whose samples are worse than noise; empty where none are."""
    noise = statistics.get("noise", float("inf"))
    worse = {n: d for n, d in statistics.items() if n != "noise" and not d < noise}
    return "; ".join(
        f"the samples of sources.{name} match the network's BatchNorm statistics worse than noise "
        f"does ({distance:.3g} against {noise:.3g}), and a student may learn nonsense from them: "
        "raise schedule.image_steps, or schedule.generator_steps where a generator makes them"
        for name, distance in worse.items()
    )


def kept_states(folder: Path, stages: Mapping[str, int]) -> dict[str, Path]:
    """Return the files of students that were kept, by stage, in their order."""
    files = {stage: folder / PATTERN.format(stage) for stage in stages}
    return {stage: path for stage, path in files.items() if path.is_file()}


def forget_states(folder: Path) -> None:
    """Remove the students that were kept."""
    for path in folder.glob(PATTERN.format("*")):
        path.unlink(missing_ok=True)
