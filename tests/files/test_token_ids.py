"""Files of token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hast_lightning.errors import DataError
from hast_lightning.files.token_ids import read_token_ids


def read(folder: Path, x: Any) -> np.ndarray:
    np.savez(folder / "ids.npz", x=np.asarray(x))
    return read_token_ids(folder / "ids.npz", 4, 9, "data.path=ids.npz")


def test_short_rows_are_filled_up(tmp_path: Path) -> None:
    found = read(tmp_path, np.array([[1, 2, 8], [3, 0, -1]], np.int16))
    assert found.tolist() == [[1, 2, 8, -1], [3, 0, -1, -1]]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[1.0, 2.0]], "type float64; allowed: integers"),
        ([1, 2], r"shape \(2,\)"),
        ([[1]], "rows of one token"),
        ([[1, 2, 3, 4, 5]], "rows of 5 tokens; the network takes 4"),
        ([[1, 9]], "ids from 1 to 9; the network knows 0 to 8"),
        ([[1, -2]], "ids from -2"),
        ([[1, -1, 2]], "less than two tokens, or goes on behind -1"),
        ([[1, -1]], "less than two tokens"),
        (np.zeros((0, 3), np.int64), "allowed: integers"),
    ],
)
def test_what_is_no_text_is_refused(x: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, x)
    assert str(caught.value).startswith("data.path=ids.npz")


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no file"):
        read_token_ids(tmp_path / "none.npz", 4, 9, "data.path=none.npz")
