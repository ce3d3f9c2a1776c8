"""The folder that Hydra makes for a run before the run has been checked."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

SAVED_BY_HYDRA = ("config.yaml", "hydra.yaml", "overrides.yaml")


class MadeFolder(Callback):
    """Hydra's callback that remembers which folders are there for this run alone.

    Attributes:
        made: The run folder and those above it that did not exist before, the innermost first.
        own: What Hydra itself may write into the run folder.
    """

    made: ClassVar[list[Path]] = []
    own: ClassVar[list[Path]] = []

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Look at what is there, just before Hydra makes the folder."""
        try:
            folder = Path(str(config.hydra.run.dir)).absolute()
        except OmegaConfBaseException:  # Hydra stumbles over it itself, in its own words
            return
        MadeFolder.made = [path for path in (folder, *folder.parents) if not path.exists()]
        MadeFolder.own = [folder / f"{config.hydra.job.name}.log"]
        if config.hydra.output_subdir is not None:
            saved = folder / str(config.hydra.output_subdir)
            MadeFolder.own += [*(saved / name for name in SAVED_BY_HYDRA), saved]


def forget_made_folder() -> None:
    """What an earlier run in this process made is not to be removed any more."""
    MadeFolder.made, MadeFolder.own = [], []


def remove_made_folder() -> None:
    """Remove what Hydra made for a run that was refused, if nothing else is in it.

    A folder that was there before stays, empty or not, and so does one that the run, or anybody
    else, has written to.
    """
    if not MadeFolder.made:
        return
    folder, *above = MadeFolder.made
    if any(path not in MadeFolder.own for path in folder.rglob("*")):
        return
    with contextlib.suppress(OSError):
        for path in MadeFolder.own:
            _remove(path)
        for path in (folder, *above):
            path.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
