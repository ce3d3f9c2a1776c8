"""Safetensors files of samples and generators, read and written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hast_lightning.errors import DataError, first_line

FORMAT_VERSION = "1"


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


def read_tensors(
    path: str | Path, kind: str, key: str = "load"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what :func:`write_tensors` wrote, to the CPU.

    Args:
        path: The file.
        kind: What it has to hold.
        key: The setting that names the file, for messages.

    Returns:
        The tensors by name, and the header.

    Raises:
        DataError: the file is missing, unreadable, or holds something else.
    """
    if not Path(path).is_file():
        raise DataError(f"{key}={path}: there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        reason = first_line(error)
        raise DataError(
            f"{key}={path}: not a readable safetensors file, perhaps truncated ({reason})"
        ) from error
    _check_header(path, kind, header, key)
    return tensors, header


def _check_header(path: str | Path, kind: str, header: dict[str, str], key: str) -> None:
    expected = f"hast-lightning/{kind}"
    if header.get("format") != expected:
        raise DataError(f"{key}={path}: format is {header.get('format')!r}, not {expected!r}")
    if header.get("version") != FORMAT_VERSION:
        raise DataError(
            f"{key}={path}: version is {header.get('version')!r}, "
            f"and only {FORMAT_VERSION!r} is supported"
        )
