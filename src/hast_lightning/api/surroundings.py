"""A run inside a user's process leaves that process as it found it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from hast_lightning.random_streams import random_streams, set_random_streams

SEED_VARIABLES = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")
LIGHTNING_LOG = "lightning.pytorch"


@contextlib.contextmanager
def undisturbed_process() -> Iterator[None]:
    """Put back what a run sets for a whole process.

    These are random streams, warning filters, the level of Lightning's log, torch's threads and
    its treatment of denormal numbers, and the variables by which Lightning hands on a seed. Inside,
    gradients are computed, whatever the caller has switched off.
    """
    threads, flushes = torch.get_num_threads(), _flushes_denormals()
    log = logging.getLogger(LIGHTNING_LOG)
    level, seeds = log.level, {name: os.environ.get(name) for name in SEED_VARIABLES}
    streams = random_streams()
    try:
        with (
            warnings.catch_warnings(),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            yield
    finally:
        # Lightning's own context does so only where nothing is raised.
        set_random_streams(streams)
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flushes)
        log.setLevel(level)
        for name, value in seeds.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _flushes_denormals() -> bool:
    """Torch has no question for it: half of the smallest normal number is zero or is not."""
    smallest = torch.tensor([torch.finfo(torch.float32).tiny])
    return float((smallest * 0.5).item()) == 0.0


@contextlib.contextmanager
def run_folder(given: str | Path | None) -> Iterator[Path]:
    """The folder that the user wants to keep, or one that is gone afterwards."""
    if given is not None:
        yield Path(given).expanduser()
        return
    with tempfile.TemporaryDirectory(prefix="hast-lightning-") as parent:
        yield Path(parent) / "run"


@contextlib.contextmanager
def quiet(silent: bool) -> Iterator[None]:
    """Without the tables that a run prints, where ``silent``."""
    if not silent:
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()), _without_display():
        yield


def _without_display() -> AbstractContextManager[Any]:
    """In a notebook, tables are displayed and not written to standard output."""
    if "IPython" not in sys.modules:
        return contextlib.nullcontext()
    from IPython.core.getipython import get_ipython
    from IPython.utils.capture import capture_output

    if get_ipython() is None:
        return contextlib.nullcontext()
    captured: AbstractContextManager[Any] = capture_output(stdout=False, stderr=False)
    return captured
