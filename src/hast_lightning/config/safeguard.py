"""What keeps a run from handing back a network that is worse than before a stage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hast_lightning.core.checks import require_range

REFERENCE, LEAVES = "reference", "leaves"
"""Images of the judge's own, which match BatchNorm statistics, and pictures of leaves."""
DECIDING = {REFERENCE: 1, LEAVES: 2}
"""Kinds of images that students are chosen by, and how often each counts. A correction of
statistics looks better than it is on images that match statistics, and what learned from leaves
does so on leaves; the former is more frequent (``experiments/do_no_harm``)."""


def deciding_error(errors: Mapping[str, float]) -> float:
    """Return the weighted geometric mean of the errors on the kinds of :data:`DECIDING`.

    Args:
        errors: By kind of images; kinds that are missing do not count.
    """
    found = {kind: weight for kind, weight in DECIDING.items() if kind in errors}
    total = sum(found.values())
    return math.prod(math.pow(errors[kind], weight / total) for kind, weight in found.items())


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

    def unused(self) -> tuple[str, ...]:
        """Return what changes no number of the run where nobody judges."""
        return () if self.enabled else ("images", "iterations")
