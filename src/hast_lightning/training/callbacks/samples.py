"""Keeps the synthesized samples as soon as they are complete."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from hast_lightning.errors import DataError

if TYPE_CHECKING:
    from hast_lightning.training.module import ZeroShotQuantization


class SaveSamples(Callback):
    """Writes the main source to a file that its ``load`` accepts.

    After the last step of every stage that improves it, so that a run that fails later has not
    lost it.

    Args:
        save: Writes the file.
        path: Where it goes.
        source: Name of the main source.
    """

    def __init__(self, save: Callable[[Path], None], path: Path, source: str) -> None:
        self._save_to = save
        self._path = path
        self._source = source

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what a run that was killed at the very end of the stage had not yet."""
        module = cast("ZeroShotQuantization", pl_module)
        done = module.agenda.done(module.iteration)
        complete = any(self._source in leg.improves and n == leg.total for leg, n in done)
        if complete and not self._path.exists():
            self._save(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Save when a stage that improves the source is complete."""
        module = cast("ZeroShotQuantization", pl_module)
        stage, step, total = module.progress
        if step == total and self._source in module.agenda.leg(stage).improves:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            # A source may have nothing finished yet, or nothing that could be saved.
            with contextlib.suppress(DataError):
                self._save_to(self._path)
