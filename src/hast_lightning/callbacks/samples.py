"""Keeps the synthesized samples as soon as they are complete."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from hast_lightning.schedule import ScheduledModule


class SaveSamples(Callback):
    """Writes the sample source to a file that ``synthesis.load`` accepts.

    After the last step of the stage ``synthesis``, so that a run that fails later has not
    lost it; and at the end of a run whose source kept training to the end.
    """

    def __init__(self, save: Callable[[Path], None], path: Path) -> None:
        self._save_to = save
        self._path = path

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what a run that was killed at the very end of the stage had not yet."""
        module = cast("ScheduledModule", pl_module)
        done = module.iteration >= module.stage_totals.get("synthesis", module.iteration + 1)
        if done and not self._path.exists():
            self._save(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Save when the synthesis stage is complete."""
        progress = cast("ScheduledModule", pl_module).progress
        if progress.stage == "synthesis" and progress.step == progress.total:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what an alternating run ended with, its warm-up included."""
        if {"warmup", "alternating"} & cast("ScheduledModule", pl_module).stage_totals.keys():
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            self._save_to(self._path)
