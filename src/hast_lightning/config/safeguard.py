"""What keeps a run from handing back a network that is worse than before a stage."""

from __future__ import annotations

from dataclasses import dataclass

from hast_lightning.core.checks import require_range

REFERENCE = "reference"
"""Images that students are compared on: nobody trained on them, and no method made them."""


@dataclass
class SafeguardConfig:
    """After the last stage the student of every stage is compared with the teacher.

    Nothing here sees a label, and nobody trains on the images that are used.
    """

    enabled: bool = True
    """Hand back the student of the stage after which it was closest to the teacher; false: that of
    the last stage, whatever it is."""
    images: int = 128
    """Images of its own that students are judged by."""
    iterations: int = 100
    """Steps in which these images are matched to the teacher's BatchNorm statistics."""
    tolerance: float = 0.0
    """How much smaller, as a share, the error of an earlier student must be to be preferred; 0: any
    smaller one is."""

    def __post_init__(self) -> None:
        require_range("safeguard.images", self.images, 2)
        require_range("safeguard.iterations", self.iterations, 0)
        require_range("safeguard.tolerance", self.tolerance, 0, 1)
