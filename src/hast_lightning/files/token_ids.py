"""Files of token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hast_lightning.errors import DataError
from hast_lightning.files.pictures import read_arrays

END = -1
"""Stands behind the last token of a row that is shorter than others."""


def read_token_ids(path: Path, length: int, vocabulary: int, origin: str) -> NDArray[np.int64]:
    """Return the texts of an .npz file, (texts, length), with :data:`END` behind the end of each.

    Args:
        path: With ``x``, integers (texts, tokens).
        length: Tokens that the network takes.
        vocabulary: Tokens that it knows.
        origin: Key and value that brought the file here, for messages.

    Raises:
        DataError: there is no such file, its rows are longer or are no ids of the network, or end
            in the middle.
    """
    if not path.is_file():
        raise DataError(f"{origin} is no file; expected an .npz file with x, integers (texts, ids)")
    (ids,) = read_arrays(path, ("x",), origin)
    _require_ids(ids, origin)
    if ids.shape[1] > length:
        raise DataError(
            f"{origin}: x has rows of {ids.shape[1]} tokens; the network takes {length} "
            "(model.input_size): cut them"
        )
    low, high = int(ids.min()), int(ids.max())
    if low < END or high >= vocabulary:
        raise DataError(
            f"{origin}: x has ids from {low} to {high}; the network knows 0 to {vocabulary - 1}, "
            f"and {END} stands behind the end of a row"
        )
    ended = ids == END
    if bool((ended[:, :-1] & ~ended[:, 1:]).any()) or bool(ended[:, :2].any()):
        raise DataError(f"{origin}: a row of x has less than two tokens, or goes on behind {END}")
    found = np.full((len(ids), length), END, np.int64)
    found[:, : ids.shape[1]] = ids
    return found


def _require_ids(ids: NDArray[Any], origin: str) -> None:
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer) or 0 in ids.shape:
        raise DataError(
            f"{origin}: x has shape {ids.shape} and type {ids.dtype}; allowed: integers (texts, "
            "tokens)"
        )
    if ids.shape[1] < 2:
        raise DataError(f"{origin}: x has rows of one token, behind which nothing comes")
