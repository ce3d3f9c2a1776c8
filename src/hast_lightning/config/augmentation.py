"""Random crops and flips of synthetic images, for synthesis and for distillation."""

from __future__ import annotations

from dataclasses import dataclass

from hast_lightning.config.checks import require_range


@dataclass
class AugmentationConfig:
    """Random resized crop and horizontal flip, drawn afresh for every image."""

    probability: float = 0.0
    """Probability that a whole batch is augmented; 0 switches augmentation off."""
    min_scale: float = 0.5
    """Smallest area of the crop as a share of the image's."""
    max_scale: float = 1.0
    """Range of the crop's area as a share of the image's."""
    flip: float = 0.5
    """Probability of a horizontal flip, per image."""

    def __post_init__(self) -> None:
        require_range("augmentation.probability", self.probability, 0, 1)
        require_range("augmentation.flip", self.flip, 0, 1)
        require_range("augmentation.min_scale", self.min_scale, 0, 1, open_minimum=True)
        require_range("augmentation.max_scale", self.max_scale, self.min_scale, 1)
