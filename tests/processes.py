"""Processes of the command line that can be killed, forked from one that has loaded torch.

A process that starts from nothing spends seconds on imports before the first line that a test is
about. What is forked here has a process id, memory and standard streams of its own, takes signals
and leaves an exit status as any other; only its imports were done beforehand.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from hast_lightning.cli import main as cli

LOADED_BEFOREHAND = ["hast_lightning.cli.main", "hast_lightning.runs.pipeline"]


class Forked:
    """``python -m hast_lightning <arguments>``, with the methods of ``subprocess.Popen``.

    Args:
        folder: Its working directory.
        arguments: The words of the command line.
        environment: Variables beside those of this process.
        become: What it does in place of the command line: a function of a module.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        become: Callable[[], None] = cli.main,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(LOADED_BEFOREHAND)
        self._printed = tempfile.NamedTemporaryFile(suffix=".txt")  # noqa: SIM115  # as long as self
        everything = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        self._process: ForkServerProcess = context.Process(
            target=_be, args=(folder, arguments, everything, Path(self._printed.name), become)
        )
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """The exit status, or the negative number of the signal that ended it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit status; none while it runs."""
        return self.returncode

    def send_signal(self, sign: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, sign)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; what it printed, standard error among it, and nothing beside.

        Raises:
            TimeoutError: it still runs.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"process {self._process.pid} has not ended: {self._text()}")
        return self._text(), ""

    def _text(self) -> str:
        return Path(self._printed.name).read_text(encoding="utf-8", errors="replace")


def _be(
    folder: Path,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    printed: Path,
    become: Callable[[], None],
) -> None:
    """In the new process: take on what makes it one of its own."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    # Lightning reads it once, when it is imported.
    rank_zero_only.rank = int(environment.get("RANK", 0))
    sys.argv = ["hast-lightning", *arguments]
    with printed.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1, closefd=False)
    become()
