"""Calling the command line inside the test's own process, where torch is loaded already."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.types import RunMode

from hast_lightning.cli import main as cli
from hast_lightning.config import import_parts
from hast_lightning.core import part

# A whole run of any method in a second or two.
TINY = (
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "callbacks.progress=false",
    "callbacks.grid_images=4",
    "schedule.images=64",
    "schedule.image_batch=32",
    "schedule.image_steps=3",
    "schedule.generator_steps=6",
    "schedule.calibration_steps=2",
    "schedule.student_steps=3",
    "schedule.student_batch=8",
    "schedule.unit_steps=2",
    "safeguard.images=8",
    "safeguard.iterations=2",
)
SYNTHESIS_STEPS, CALIBRATION_STEPS, STUDENT_STEPS = 6, 2, 3


@dataclass(frozen=True)
class Finished:
    """What a process would have left."""

    status: int
    out: str
    err: str

    def refusal(self) -> str:
        """The one line of a refused command; fails where there is more or less."""
        assert self.status == cli.USER_ERROR_STATUS, self
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("hast-lightning: ")
        assert "Traceback" not in self.out + self.err
        return lines[0].removeprefix("hast-lightning: ")


@contextmanager
def undisturbed_torch() -> Iterator[None]:
    """One thread inside; what a run sets for the whole process is set back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)


@contextmanager
def modules_of_its_own(folder: Path) -> Iterator[None]:
    """Forget what is imported from ``folder`` inside, and the parts that it makes known."""
    import_parts()
    known = {group: dict(classes) for group, classes in part._PARTS.items()}
    loaded, store = set(sys.modules), ConfigStore.instance()
    # Recipes are made of the words of a command line.
    groups = {group: dict(store.repo.get(group, {})) for group in (*known, "experiment")}
    try:
        yield
    finally:
        part._PARTS.clear()
        part._PARTS.update(known)
        store.repo.update(groups)
        for name in set(sys.modules) - loaded:
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and Path(file).is_relative_to(folder):
                del sys.modules[name]


def call(*arguments: str, folder: Path, full_error: str = "0") -> Finished:
    """``hast-lightning <arguments>`` with ``folder`` as the working directory.

    Warnings and Lightning's log, which pytest and the import have led elsewhere, are written to
    standard error as they are in a process of its own.
    """
    out, err = io.StringIO(), io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with (
        undisturbed_torch(),
        modules_of_its_own(folder),
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["hast-lightning", *arguments])
        patch.setattr(sys, "path", list(sys.path))
        patch.setenv(cli.FULL_ERROR, full_error)
        patch.delenv(cli.NOT_ASKED, raising=False)
        if not set(arguments) & set(cli.SWEEP_FLAGS) and not any("sweep=" in a for a in arguments):
            # Hydra composes everything once more, only to ask whether this is a sweep.
            patch.setattr(Hydra, "get_mode", lambda *_, **__: RunMode.RUN)
        patch.chdir(folder)
        _lead_warnings(err, patch)
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            # Hydra's handlers write to the two buffers.
            root.handlers[:], root.level = handlers, level
            if "hydra/launcher=joblib" in arguments:
                _end_workers()
    return Finished(status, out.getvalue(), err.getvalue())


def _end_workers() -> None:
    """End joblib's processes, which would wait in this folder for jobs of the next call."""
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True)


def _lead_warnings(err: io.StringIO, patch: pytest.MonkeyPatch) -> None:
    def show(
        message: Warning | str, category: type[Warning], name: str, line: int, *_: Any
    ) -> None:
        err.write(warnings.formatwarning(message, category, name, line))

    patch.setattr(warnings, "showwarning", show)
    # Python's own filters, and what pyproject.toml says of this package.
    warnings.simplefilter("default")
    for hidden in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", hidden)
    for defect in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings("error", category=defect, module="hast_lightning")
    for name in ("lightning", "lightning.fabric", "lightning.pytorch"):
        for handler in logging.getLogger(name).handlers:
            # Lightning's own; pytest's file handler is of a kind of its own.
            if type(handler) is logging.StreamHandler:
                patch.setattr(handler, "stream", err)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, byte for byte."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
