"""Leaves what stages have found as texts in the run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

if TYPE_CHECKING:
    from hast_lightning.training.module import ZeroShotQuantization


class SaveFindings(Callback):
    """Writes the files of a stage when its last step is done, so that a later failure keeps them.

    Args:
        files: Returns the texts of all stages that have some, by the names of their files.
        folder: Of the run.
    """

    def __init__(self, files: Callable[[], Mapping[str, str]], folder: Path) -> None:
        self._files = files
        self._folder = folder

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what a run that was killed at the very end of a stage had not yet."""
        self._save(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Write when a stage is complete."""
        _, step, total = cast("ZeroShotQuantization", pl_module).progress
        if step == total:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            for name, text in self._files().items():
                (self._folder / name).write_text(text, encoding="utf-8")
