"""The first half second: say what is begun, before anything that takes long is imported.

Nothing here may import torch, Lightning or Hydra.
"""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress

from hast_lightning import __version__
from hast_lightning.cli.announcement import announcement
from hast_lightning.cli.plain import plain_prediction, predict_plainly
from hast_lightning.errors import INTERRUPTED_STATUS

RANKS = ("LOCAL_RANK", "RANK", "SLURM_PROCID")
"""Variables that are above 0 in all processes of a run but one."""
PROCESSES = "WORLD_SIZE"
"""Variable with the number of processes, which launchers and Lightning set."""


def main() -> None:
    """Entry point of ``hast-lightning`` and ``python -m hast_lightning``."""
    words = sys.argv[1:]
    line = announcement(words)
    if line is not None and all(os.environ.get(rank, "0") == "0" for rank in RANKS):
        with suppress(OSError):  # whoever reads only the first lines has gone already
            print(f"hast-lightning {__version__}: {line}", flush=True)
    # What is imported stays: looking through it for garbage takes a tenth of the time.
    gc.disable()
    try:
        if (prediction := plain_prediction(words)) is not None:
            predict_plainly(prediction)
            return
        from hast_lightning.cli.main import main as command
    except KeyboardInterrupt:
        print("hast-lightning: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED_STATUS)
    gc.enable()
    try:
        command()
    except SystemExit as end:
        if int(os.environ.get(PROCESSES, "1")) > 1:
            _end_at_once(end)
        raise


def _end_at_once(end: SystemExit) -> None:
    """End without Python's own farewell, in which threads that lost another process may abort."""
    status = end.code if isinstance(end.code, int) else int(end.code is not None)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(status)
