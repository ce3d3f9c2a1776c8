"""Which recipe suits a network of which nothing is known but its images.

Of the recipes that were measured (``experiments/``) on images of such a size, the one for the
nearest number of weight bits. The published schedules take many times as long, and are taken
only by their names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Measured:
    """Recipes for one kind of images.

    Attributes:
        channels: Of the images.
        side: Their height and width, in pixels.
        by_bits: Recipes by the bits of their weights.
    """

    channels: int
    side: int
    by_bits: dict[int, str]


MEASURED = (
    Measured(1, 8, {2: "digits_w2a2", 3: "digits_w3a3"}),
    Measured(
        3,
        32,
        {3: "cifar10_resnet20_w3a3_recommended", 4: "cifar10_resnet20_w4a4_recommended"},
    ),
    Measured(
        3,
        224,
        {
            4: "mobilenetv1_x025_w4a4_recommended",
            5: "mobilenetv1_x025_w5a5_recommended",
            8: "mobilenetv1_x025_w8a8_recommended",
        },
    ),
)


class Choice(NamedTuple):
    """The recipe for a network.

    Attributes:
        recipe: Its name.
        images: (C, H, W) that it was measured on.
        suits: Whether the network takes such images.
    """

    recipe: str
    images: tuple[int, int, int]
    suits: bool

    def doubt(self, input_shape: tuple[int, int, int]) -> str:
        """What to say where the network takes other images."""
        wanted, measured = ("x".join(map(str, shape)) for shape in (input_shape, self.images))
        return (
            f"no recipe was measured on images of {wanted}: the nearest, {self.recipe}, is taken, "
            f"for {measured}. recipe={self.recipe!r} takes it without this warning; "
            "`hast-lightning --help` lists the others"
        )


def choose(input_shape: tuple[int, int, int], weight_bits: int | None) -> Choice:
    """The recipe for a network that takes images of ``input_shape``, (C, H, W).

    Args:
        input_shape: Of the network.
        weight_bits: That are wanted; none: the most of any recipe, at which least is lost.
    """
    channels, height, width = input_shape
    side = math.sqrt(height * width)
    nearest = min(
        MEASURED,
        key=lambda family: (abs(math.log2(side / family.side)), family.channels != channels),
    )
    bits = max(nearest.by_bits) if weight_bits is None else weight_bits
    recipe = nearest.by_bits[min(nearest.by_bits, key=lambda known: abs(known - bits))]
    images = (nearest.channels, nearest.side, nearest.side)
    return Choice(recipe, images, input_shape == images)
