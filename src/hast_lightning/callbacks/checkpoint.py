"""The checkpoint of a run: the last good state."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class LastCheckpoint(Callback):
    """Keeps one full checkpoint (networks, optimizers, loops, callbacks) of the latest state.

    The file is replaced in one move, so at any moment it is a whole checkpoint: the new one or
    the one before. Nothing is saved after an exception, whose cause (a loss that became NaN)
    may already be in the weights.

    Lightning's own ``ModelCheckpoint`` counts ``trainer.global_step``, which under manual
    optimization grows with every optimizer, and does not flush to the disk.
    """

    def __init__(self, path: str | Path, every_n_steps: int) -> None:
        """Save to ``path`` after every ``every_n_steps`` training batches and at the end.

        Raises:
            ValueError: ``every_n_steps`` is not positive.
        """
        super().__init__()
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps} must be at least 1")
        self.path = Path(path)
        self.every_n_steps = every_n_steps
        self._batches = 0
        self._failed = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here; the batches before a resume do not matter."""
        self._batches = 0
        self._failed = False

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save when it is time."""
        self._batches += 1
        if self._batches % self.every_n_steps == 0:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state."""
        self.save(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the last good checkpoint alone from now on."""
        self._failed = True

    def save(self, trainer: Trainer) -> None:
        """Replace the checkpoint; to be called on every rank, writes on rank zero."""
        if self._failed:
            return
        # The same name on every rank: each passes it to the strategy.
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        if trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            trainer.save_checkpoint(temporary, weights_only=False)
            if trainer.is_global_zero:
                _flush(temporary)
                temporary.replace(self.path)
                _flush(self.path.parent)
        finally:
            if trainer.is_global_zero:
                temporary.unlink(missing_ok=True)
        trainer.strategy.barrier("LastCheckpoint.save")


def _flush(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder, and flushes only what is open for writing.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
