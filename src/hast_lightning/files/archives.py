"""Untrusted zip archives: .npz files and what torch.save writes."""

from __future__ import annotations

import zipfile
from pathlib import Path

MAX_EXPANSION = 200
"""Bytes that a byte of an archive may become. Images become a few; a bomb a thousand and more."""
SMALL = 64 * 2**20
"""Bytes that are no danger however much they were compressed."""


def require_bounded(path: Path) -> None:
    """Refuse an archive that would fill the memory; one that is not a zip archive passes.

    What the entries say of their sizes is enough: readers stop at the size that is declared.

    Raises:
        ValueError: its entries expand to more than ``MAX_EXPANSION`` times the file.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        expanded = sum(entry.file_size for entry in archive.infolist())
    if expanded > max(MAX_EXPANSION * path.stat().st_size, SMALL):
        raise ValueError(
            f"it would expand from {path.stat().st_size} to {expanded} bytes, which no images or "
            "weights do"
        )
