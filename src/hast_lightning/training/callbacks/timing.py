"""Wall-clock time of each stage."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

if TYPE_CHECKING:
    from hast_lightning.core.batch import Progress


class StageTimer(Callback):
    """Adds up the seconds of each stage; what lies between two steps belongs to the later one.

    The times are part of the checkpoint, so a resumed run goes on counting.

    Attributes:
        seconds: Wall-clock seconds by name of stage.
    """

    def __init__(self) -> None:
        """Start from zero."""
        super().__init__()
        self.seconds: dict[str, float] = {}
        self._mark = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._mark = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Charge the step that was just done to its stage."""
        stage, step, total = cast("Progress", pl_module.progress)
        if step == total and pl_module.device.type == "cuda":
            # Kernels run behind the host. Waiting for them costs speed, and only where one
            # stage ends would their time be charged to the wrong stage.
            torch.cuda.synchronize(pl_module.device)
        now = time.perf_counter()
        self._charge(stage, now - self._mark, pl_module)
        self._mark = now

    def _charge(self, stage: str, seconds: float, pl_module: LightningModule) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds so far, for the checkpoint."""
        return {"seconds": dict(self.seconds)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the seconds of a checkpoint."""
        self.seconds = dict(state_dict["seconds"])
