"""Test pictures parted in two: some stand for a user's own, others are measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from experiments.resumable import SCRATCH
from hast_lightning.files.pictures import Fitting

OWN, REST = "pictures.npz", "cifar10_test_rest.npz"
COUNT = 256
"""The first pictures of CIFAR-10 stand for the user's own, whose labels are left out."""
OWN_PHOTOGRAPHS, OTHER_PHOTOGRAPHS = "photographs_own.npz", "photographs_rest.npz"
SIZE, RATIO = 224, 256 / 224


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


def split_photographs(folder: Path) -> list[Path]:
    """Write the two files of photographs from a folder of class folders, and return them.

    Of the sorted classes every other one is the user's own, without labels; all are prepared as
    MobileNetV1 takes them.
    """
    SCRATCH.mkdir(exist_ok=True)
    own, rest = SCRATCH / OWN_PHOTOGRAPHS, SCRATCH / OTHER_PHOTOGRAPHS
    if own.exists() and rest.exists():
        return [own, rest]
    fitting = Fitting(SIZE, SIZE, RATIO)
    pixels, labels = [], []
    for label, name in enumerate(sorted(each.name for each in folder.iterdir())):
        for path in sorted((folder / name).iterdir()):
            pixels.append(np.asarray(fitting(Image.open(path).convert("RGB"))))
            labels.append(label)
    x, y = np.stack(pixels), np.array(labels)
    np.savez_compressed(own, x=x[y % 2 == 0])
    np.savez_compressed(rest, x=x[y % 2 == 1], y=y[y % 2 == 1])
    return [own, rest]
