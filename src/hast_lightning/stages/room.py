"""Room for many values: the memory of the host, or files where they are too many for it."""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hast_lightning.errors import ConfigurationError, StorageError

_log = logging.getLogger(__name__)

CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
MEMORY_SHARE = 0.5
"""Share of the machine's memory that values may take; more go to files."""


class Room:
    """Holds tensors, in memory or in files that the system gives up with them.

    A file has no name, so that nothing stays behind, however the process ends. The system reads of
    it what is asked for, and keeps as much in memory as there is.

    Args:
        on_disk: In files, in the folder for temporary files.
    """

    def __init__(self, on_disk: bool) -> None:
        self.on_disk = on_disk

    def gathered(self, count: int, parts: Iterable[Tensor]) -> Tensor:
        """Return parts behind one another, (count, ...).

        Args:
            count: Rows of all parts together.
            parts: On the CPU, of one type, at least one.

        Raises:
            StorageError: the disk is full.
        """
        whole, at = torch.empty(0), 0
        for each in parts:
            if not at:
                whole = self._empty((count, *each.shape[1:]), each.dtype)
            whole[at : at + len(each)] = each
            at += len(each)
        if at != count:
            raise ValueError(f"{at} of {count} rows were given")
        return whole

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        size = math.prod(shape) * dtype.itemsize
        if not self.on_disk or not size:
            return torch.empty(*shape, dtype=dtype)
        try:
            with tempfile.TemporaryFile() as file:
                # A mapping into a full disk would end the process.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                raw = np.memmap(file, np.uint8, "r+", shape=(size,))
        except OSError as error:
            raise StorageError(
                f"{size / 1e9:,.1f} GB of values do not fit into {tempfile.gettempdir()}: {error}"
            ) from error
        return torch.from_numpy(raw).view(dtype).view(*shape)


def room_for(size: int, what: str) -> Room:
    """Return room for values: in memory, or on the disk where they are too many.

    Args:
        size: Their bytes.
        what: What they are, for the message.

    Raises:
        ConfigurationError: they fit into neither.
    """
    memory = memory_of_machine()
    if memory is None or size <= MEMORY_SHARE * memory:
        return Room(on_disk=False)
    free = free_on_disk()
    takes = f"{what} take {size / 1e9:,.1f} GB"
    has = f"this machine has {memory / 1e9:,.1f} GB of memory"
    if size > free:
        raise ConfigurationError(
            f"{takes}, and {has} and {free / 1e9:,.1f} GB free in {tempfile.gettempdir()}"
        )
    _log.info("%s, and %s: they are kept in %s", takes, has, tempfile.gettempdir())
    return Room(on_disk=True)


def memory_of_machine() -> int | None:
    """Return the bytes of memory that the process may have; none where the system does not tell."""
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    try:
        return min(whole, int(CONTAINER_LIMIT.read_text()))
    except (OSError, ValueError):  # no container, or one without a limit: "max"
        return whole


def free_on_disk() -> int:
    """Return the bytes that are free in the folder for temporary files."""
    return shutil.disk_usage(tempfile.gettempdir()).free
