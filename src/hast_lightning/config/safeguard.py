"""What keeps a run from handing back a network that is worse than before a stage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hast_lightning.core.checks import require_range

REFERENCE, LEAVES = "reference", "leaves"
"""Images of the judge's own, which match BatchNorm statistics, and pictures of leaves."""
DECIDING = (REFERENCE, LEAVES)
"""Kinds of images that students are chosen by. A correction of statistics looks better than it is
on images that match statistics, and what learned from leaves does so on leaves
(``experiments/do_no_harm``)."""


def deciding_error(errors: Mapping[str, float]) -> float:
    """Return the geometric mean of the errors on the kinds of :data:`DECIDING` that there are.

    Args:
        errors: By kind of images.
    """
    found = [errors[kind] for kind in DECIDING if kind in errors]
    roots = [math.pow(error, 1 / len(found)) for error in found]
    return math.prod(roots)


@dataclass
class SafeguardConfig:
    """After the last stage the student of every stage is compared with the teacher.

    Nothing here sees a label, and nobody trains on the images that are used.
    """

    enabled: bool = True
    """Hand back the student of the stage after which it was closest to the teacher; false: that of
    the last stage, whatever it is."""
    images: int = 128
    """Images of each kind that students are judged by: of its own, and pictures of leaves."""
    iterations: int = 100
    """Steps in which these images are matched to the teacher's BatchNorm statistics."""
    tolerance: float = 0.0
    """How much smaller, as a share, the error of an earlier student must be to be preferred; 0: any
    smaller one is."""

    def __post_init__(self) -> None:
        require_range("safeguard.images", self.images, 2)
        require_range("safeguard.iterations", self.iterations, 0)
        require_range("safeguard.tolerance", self.tolerance, 0, 1)
