"""What a source of synthetic samples is, and the file that one is saved in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hast_lightning.errors import DataError

FORMAT_VERSION = "1"


class SampleSource(Protocol):
    """Yields synthetic images with labels, and has parameters that improve them.

    Images are normalized as the teacher expects, float32 of shape (B, C, H, W);
    labels are int64 of shape (B,). Implementations are also ``nn.Module``: all
    that changes is in their ``state_dict``. Random numbers come from torch's
    global generator.
    """

    @property
    def shared(self) -> bool:
        """Whether all ranks train one set of parameters, or each rank its own."""
        ...

    @property
    def steps_to_fill(self) -> int | None:
        """Optimizer steps until every image was made once; none: there is no natural end."""
        ...

    @property
    def steps_to_start(self) -> int:
        """Optimizer steps until there is a first finished image; zero: there always is one."""
        ...

    def propose(self) -> tuple[Tensor, Tensor]:
        """Return a batch to improve, differentiable in the source's parameters."""
        ...

    def part_ways(self) -> None:
        """Draw afresh what must not be the same on every rank, from this rank's streams."""
        ...

    def own_state(self) -> dict[str, Any]:
        """What only this rank has, in plain values; empty where the ranks are alike."""
        ...

    def set_own_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`own_state` returned on this rank."""
        ...

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Return an optimizer over the source's parameters."""
        ...

    def improved(self, loss: float, optimizer: torch.optim.Optimizer) -> None:
        """Be told, after each optimizer step, of the loss of the batch last proposed.

        Raises:
            FloatingPointError: finished images are NaN or infinite, which no loss will show.
        """
        ...

    def sample(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return detached samples to train or calibrate a student on."""
        ...

    def held_out(self, count: int) -> tuple[Tensor, Tensor]:
        """Return at most ``count`` samples that :meth:`sample` never gives, always the same."""
        ...

    def preview(self, count: int) -> tuple[Tensor, Tensor]:
        """Return at most ``count`` samples to look at, as they are now, detached.

        Leaves no trace: neither in the source nor in the random numbers.
        """
        ...

    def save(self, path: str | Path) -> None:
        """Write a file that ``synthesis.load`` accepts, whole or not at all."""
        ...


def _usual_permissions() -> int:
    """Permissions of a new file under the user's mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def write_tensors(
    path: str | Path, kind: str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file whose header says what it holds, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {**(metadata or {}), "format": f"hast-lightning/{kind}", "version": FORMAT_VERSION}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, partial, metadata=header)
        partial.chmod(_usual_permissions())  # safetensors lets nobody else read its files
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what :func:`write_tensors` wrote, to the CPU.

    Returns:
        The tensors by name, and the header.

    Raises:
        DataError: the file is missing, unreadable, or holds something else.
    """
    if not Path(path).is_file():
        raise DataError(f"synthesis.load={path}: there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"synthesis.load={path}: not a readable safetensors file, perhaps truncated ({reason})"
        ) from error
    _check_header(path, kind, header)
    return tensors, header


def _check_header(path: str | Path, kind: str, header: dict[str, str]) -> None:
    expected = f"hast-lightning/{kind}"
    if header.get("format") != expected:
        raise DataError(
            f"synthesis.load={path}: format is {header.get('format')!r}, not {expected!r}"
        )
    if header.get("version") != FORMAT_VERSION:
        raise DataError(
            f"synthesis.load={path}: version is {header.get('version')!r}, "
            f"and only {FORMAT_VERSION!r} is supported"
        )
