"""``failure.json``: what a run that came to no end leaves in its folder."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from hast_lightning.core.batch import Progress
from hast_lightning.errors import UserError
from hast_lightning.records.folder import CONFIG_FILE, JOB_FAILURE_FILE
from hast_lightning.runtime.ranks import rank

FAILURE_FILE = "failure.json"
ENDS = {"KeyboardInterrupt": "interrupted", "SIGTERMException": "terminated"}
"""What ended a run from outside, by the class of the error."""


@dataclass(frozen=True)
class Failure:
    """The place where a run ended too early, why, and what there is to go on from.

    Attributes:
        stage: What the run was doing.
        step: Of the stage, from 1.
        total: Steps of the stage.
        iteration: Iterations of the whole run that were done.
        reason: The error in one line.
        kind: The error's class; ``KeyboardInterrupt`` where the user ended the run.
        checkpoint: Name of the last checkpoint, which ``resume=<run folder>`` goes on from; none
            where there is none and the run would begin anew.
        rank: Number of the process that failed, the first of them to say so.
    """

    stage: str
    step: int
    total: int
    iteration: int
    reason: str
    kind: str
    checkpoint: str | None
    rank: int

    def headline(self, after_last_step: bool = False) -> str:
        """Return what happened and where, as ``failed at step 2 of 9 of stage synthesis``."""
        what = ENDS.get(self.kind, "failed")
        if after_last_step:
            return f"{what} after the last step"
        return f"{what} at step {self.step:,} of {self.total:,} of stage {self.stage}"

    @classmethod
    def of(
        cls, error: BaseException, progress: Progress, iteration: int, checkpoint: Path
    ) -> Failure:
        """Return what there is to say of an error.

        Args:
            error: What ended the run.
            progress: Stage and step that were being done.
            iteration: Iterations that were done.
            checkpoint: Where the last checkpoint would be.
        """
        stage, step, total = progress
        lines = str(error).splitlines() or [""]
        return cls(
            stage=stage,
            step=step,
            total=total,
            iteration=iteration,
            reason=lines[0] if not isinstance(error, UserError) else " ".join(lines),
            kind=type(error).__name__,
            checkpoint=checkpoint.name if checkpoint.exists() else None,
            rank=rank(),
        )

    def write(self, folder: Path) -> None:
        """Leave the file in ``folder``; the first process that fails knows best, others nothing.

        A disk that is full or a folder that is gone must not hide the error itself.
        """
        partial = folder / f".{FAILURE_FILE}.{os.getpid()}.tmp"
        with contextlib.suppress(OSError):
            partial.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
            # Unlike a move, a link leaves what another process has written alone.
            os.link(partial, folder / FAILURE_FILE)
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def read_failure(folder: Path) -> Failure | None:
    """Return what a run left of its failure; none where it did not fail or was killed outright.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / FAILURE_FILE
    if not path.is_file():
        return None
    try:
        return Failure(**json.loads(path.read_text(encoding="utf-8")))
    except TypeError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def how_it_ended(folder: Path) -> str:
    """Return how a run without a result ended, as far as its folder tells, in one line."""
    with contextlib.suppress(OSError, ValueError):  # a damaged record tells nothing
        if failure := read_failure(folder):
            return ": ".join(filter(None, (failure.headline(), failure.reason)))
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads((folder / JOB_FAILURE_FILE).read_text(encoding="utf-8"))
        return " ".join(str(record["message"]).split())
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if "evaluate: false" in (folder / CONFIG_FILE).read_text(encoding="utf-8").splitlines():
            return "without evaluation (evaluate=false), killed, or still running"
    return "killed, or still running"


def forget_failure(folder: Path) -> None:
    """Remove what an earlier attempt left, when the run is taken up again."""
    (folder / FAILURE_FILE).unlink(missing_ok=True)
