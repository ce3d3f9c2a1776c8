"""The checkpoints of a run: the last good state, and those before it."""

from __future__ import annotations

import logging
import os
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from hast_lightning.errors import DataError, StorageError
from hast_lightning.runtime.interruption import Interruption
from hast_lightning.runtime.ranks import answered

if TYPE_CHECKING:
    from hast_lightning.training.module import ZeroShotQuantization

_log = logging.getLogger(__name__)


class LastCheckpoint(Callback):
    """Keeps full checkpoints (networks, optimizers, callbacks) of the latest states.

    The file is replaced in one move, so at any moment it is a whole checkpoint: the new one or
    the one before, which is kept beside it under a number. Nothing is saved after an exception,
    whose cause (a loss that became NaN) may already be in the weights. Who asks for the end, by
    Ctrl-C or SIGTERM, gets it between two steps, after a checkpoint.

    Lightning's own ``ModelCheckpoint`` counts ``trainer.global_step``, which under manual
    optimization grows with every optimizer, and does not flush to the disk.
    """

    def __init__(
        self,
        path: str | Path,
        every_n_steps: int,
        every_n_minutes: float = float("inf"),
        kept: int = 1,
    ) -> None:
        """Save to ``path`` when the first of two intervals is over, and when a stage ends.

        Args:
            path: The last checkpoint; the one before is ``<stem>.1<suffix>``, and so on.
            every_n_steps: Training batches between two checkpoints.
            every_n_minutes: Minutes between two checkpoints.
            kept: Checkpoints that stay, the last one included.

        Raises:
            ValueError: an interval or ``kept`` is not positive.
        """
        super().__init__()
        limits = {
            "every_n_steps": every_n_steps,
            "every_n_minutes": every_n_minutes,
            "kept": kept,
        }
        for name, value in limits.items():
            if value <= 0:
                raise ValueError(f"{name}={value} must be positive")
        self.path = Path(path)
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.kept = kept
        self.interruption = Interruption()
        self._stopping = False
        self._batches = 0
        self._saved_at = 0.0
        self._saved_batches: int | None = None
        self._failed = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here; the batches before a resume do not matter."""
        self._batches = 0
        self._saved_at = time.monotonic()
        self._saved_batches = None
        self._failed = False

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """End where the user asked for it in the step before, which is logged and saved by now."""
        if self._stopping:
            raise KeyboardInterrupt

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Save when it is time."""
        self._batches += 1
        _, step, total = cast("ZeroShotQuantization", pl_module).progress
        late, self._stopping = self._agreed(trainer)
        due = self._batches % self.every_n_steps == 0 or step == total
        if due or late or self._stopping:
            self.save(trainer)

    def _agreed(self, trainer: Trainer) -> tuple[bool, bool]:
        """Return whether the minutes are over, and whether the user asked for the end.

        Rank zero decides, since clocks differ and Ctrl-C reaches processes in different steps.
        """
        late = time.monotonic() - self._saved_at >= 60 * self.every_n_minutes
        if trainer.world_size == 1:
            return late, self.interruption.asked
        with answered():
            return trainer.strategy.broadcast((late, self.interruption.asked))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state, unless the last batch was."""
        if self._saved_batches != self._batches:
            self.save(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the last good checkpoint alone from now on.

        Lightning raises what SIGTERM asks for between two steps. Several processes may hear of it
        in different ones, so that no state of all would be of the same step.
        """
        unsaved = self._saved_batches != self._batches and self._batches > 0
        if isinstance(exception, SIGTERMException) and trainer.world_size == 1 and unsaved:
            self.save(trainer)
        self._failed = True

    def save(self, trainer: Trainer) -> None:
        """Replace the checkpoint; to be called on every rank, writes on rank zero.

        Raises:
            StorageError: it could not be written; the checkpoint before is kept.
        """
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
                self._make_room()
                temporary.replace(self.path)
                _flush(self.path.parent)
        # torch's writer says that the disk is full with a RuntimeError.
        except (OSError, RuntimeError) as error:
            raise StorageError(
                f"the checkpoint {self.path} could not be written ({error}); what was saved "
                "before is kept"
            ) from error
        finally:
            if trainer.is_global_zero:
                temporary.unlink(missing_ok=True)
        self._saved_at = time.monotonic()
        self._saved_batches = self._batches
        with answered():
            trainer.strategy.barrier("LastCheckpoint.save")

    def _make_room(self) -> None:
        """Give every checkpoint the next number; the last one of those kept is overwritten."""
        if not self.path.exists():
            return
        for age in range(self.kept - 1, 0, -1):
            younger = numbered(self.path, age - 1)
            if younger.exists():
                younger.replace(numbered(self.path, age))


def numbered(path: Path, age: int) -> Path:
    """Return the path of the checkpoint that is ``age`` checkpoints older than the last."""
    return path.with_name(f"{path.stem}.{age}{path.suffix}") if age else path


def last_whole_checkpoint(path: Path) -> Path | None:
    """Return the youngest checkpoint that is whole, none where none was ever written.

    Every record's checksum is compared. A damaged checkpoint is passed over with a warning.

    Raises:
        DataError: there are checkpoints, and all of them are damaged.
    """
    ages = {file: file.suffixes[0][1:] for file in path.parent.glob(f"{path.stem}.*{path.suffix}")}
    # A user's own copy, last.backup.ckpt, is none of ours.
    numbers = {file: int(age) for file, age in ages.items() if age.isdecimal()}
    older = sorted(numbers, key=lambda file: numbers[file])
    candidates = [file for file in (path, *older) if file.exists()]
    for candidate in candidates:
        if _is_whole(candidate):
            return candidate
        _log.warning("the checkpoint %s is damaged and is passed over", candidate)
    if candidates:
        raise DataError(f"every checkpoint in {path.parent} is damaged: start the run again")
    return None


def _is_whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    # Whatever a damaged header makes the library do; nothing in the file is executed.
    except Exception:
        return False


def _flush(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder, and flushes only what is open for writing.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
