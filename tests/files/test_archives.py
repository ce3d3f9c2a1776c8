from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from hast_lightning.files.archives import require_bounded


def test_images_and_what_is_no_archive_pass(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    np.savez_compressed(tmp_path / "images.npz", x=images)
    require_bounded(tmp_path / "images.npz")
    (tmp_path / "text").write_text("no archive")
    require_bounded(tmp_path / "text")


def test_a_bomb_is_refused_without_expanding_it(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(100 * 2**20))
    assert path.stat().st_size < 2**20
    with pytest.raises(ValueError, match="would expand from"):
        require_bounded(path)
