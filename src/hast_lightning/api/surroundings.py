"""A run inside a user's process leaves that process as it found it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from hast_lightning.runtime.random_streams import random_streams, set_random_streams
from hast_lightning.runtime.ranks import alone

VARIABLES = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "CUBLAS_WORKSPACE_CONFIG")
LIGHTNING_LOG = "lightning.pytorch"


# What is set for the process is set for all of its threads.
_ONE_AT_A_TIME = threading.RLock()


@contextlib.contextmanager
def undisturbed_process() -> Iterator[None]:
    """Put back what a run sets for a whole process; of several threads one comes after the other.

    These are random streams, warning filters, the level of Lightning's log, torch's threads, its
    treatment of denormal numbers and its choice of kernels, and variables that Lightning sets.
    Inside, torch is as a new process has it, whatever the caller has chosen (see
    :func:`_plain_torch`), and the run is alone, also in one of several processes.
    """
    with _ONE_AT_A_TIME:
        yield from _undisturbed()


def _undisturbed() -> Iterator[None]:
    # Here, since whoever predicts alone need not have Lightning loaded.
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    threads, flushes = torch.get_num_threads(), _flushes_denormals()
    log = logging.getLogger(LIGHTNING_LOG)
    level, variables = log.level, {name: os.environ.get(name) for name in VARIABLES}
    streams = random_streams()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    compares_kernels = torch.backends.cudnn.benchmark
    # Lightning's own number of the process, which decides who writes files.
    number = getattr(rank_zero_only, "rank", 0)
    try:
        rank_zero_only.rank = 0  # type: ignore[attr-defined]
        with warnings.catch_warnings(), _plain_torch(), alone():
            yield
    finally:
        # Lightning's own context does so only where nothing is raised.
        set_random_streams(streams)
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flushes)
        log.setLevel(level)
        rank_zero_only.rank = number  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(deterministic, warn_only=warns)
        torch.backends.cudnn.benchmark = compares_kernels
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def _plain_torch() -> Iterator[None]:
    """Gradients, float32 and the CPU where nothing else is said, and no autocast."""
    kind = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            # Only then: it makes every call of torch slower.
            if torch.get_default_device().type != "cpu":
                stack.enter_context(torch.device("cpu"))
            yield
    finally:
        torch.set_default_dtype(kind)


def _flushes_denormals() -> bool:
    """Torch has no question for it: half of the smallest normal number is zero or is not."""
    tiny = torch.finfo(torch.float32).tiny
    smallest = torch.tensor([tiny], dtype=torch.float32, device="cpu")
    return float((smallest * 0.5).item()) == 0.0


@contextlib.contextmanager
def run_folder(given: str | Path | None) -> Iterator[Path]:
    """Give the folder that the user wants to keep, or one that is gone afterwards."""
    if given is not None:
        yield Path(given).expanduser()
        return
    with tempfile.TemporaryDirectory(prefix="hast-lightning-") as parent:
        yield Path(parent) / "run"


@contextlib.contextmanager
def quiet(silent: bool) -> Iterator[None]:
    """Keep back the tables that a run prints, where ``silent``."""
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
