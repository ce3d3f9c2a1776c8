"""The run folder, which Hydra would make before the run has been checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, read_write
from omegaconf.errors import OmegaConfBaseException


class RunFolder(Callback):
    """Hydra's callback that leaves making the folder to the run itself.

    Whoever asks Hydra for its own log, its own record or to work in the folder has it at once,
    and keeps it where the run is refused.
    """

    def __init__(self) -> None:
        self.wanted: Path | None = None

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Remember the folder, and have Hydra take the one that it was called in."""
        hydra = config.hydra
        if (
            hydra.output_subdir is not None
            or hydra.job.chdir
            or "file" in hydra.job_logging.handlers
        ):
            return
        try:
            self.wanted = Path(str(hydra.run.dir)).absolute()
        except OmegaConfBaseException:  # Hydra stumbles over it itself, in its own words
            return
        with read_write(hydra):
            hydra.run.dir = "."

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Say which folder it is: to the run, and to the processes that Lightning starts."""
        if self.wanted is not None:
            hydra: Any = HydraConfig.get()
            with read_write(hydra):
                hydra.run.dir = hydra.runtime.output_dir = str(self.wanted)
