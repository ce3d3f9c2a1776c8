"""Test pictures of CIFAR-10 parted in two: some stand for a user's own, others are measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.resumable import SCRATCH

OWN, REST = "pictures.npz", "cifar10_test_rest.npz"
COUNT = 256
"""The first pictures stand for the user's own, whose labels are left out."""


def split_pictures(file: Path) -> list[Path]:
    """Write :data:`OWN` and :data:`REST` of an .npz file with ``x`` and ``y``; return both."""
    SCRATCH.mkdir(exist_ok=True)
    own, rest = SCRATCH / OWN, SCRATCH / REST
    if own.exists() and rest.exists():  # another study may read them
        return [own, rest]
    with np.load(file) as data:
        np.savez_compressed(own, x=data["x"][:COUNT])
        np.savez_compressed(rest, x=data["x"][COUNT:], y=data["y"][COUNT:])
    return [own, rest]
