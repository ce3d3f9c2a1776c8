"""Total variation: how much neighbouring pixels differ."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from hast_lightning.core.batch import Needs, Seen
from hast_lightning.core.checks import require_range
from hast_lightning.core.network import Network
from hast_lightning.core.part import part
from hast_lightning.core.term import Term
from hast_lightning.errors import ModelError

REFERENCE = 32 * 3 * 224 * 224
"""Numbers of the batch that PSAQ-ViT's goal belongs to."""
PICTURE_DIMENSIONS = 3


def total_variation(images: Tensor, diagonals: float = 1.0) -> Tensor:
    """Return the sum of four Euclidean norms of differences, over the whole batch; a scalar.

    Of each pixel to the one on its right, below it, and on both diagonals below it.

    Source: released code of PSAQ-ViT (Li et al., ECCV 2022), after DeepInversion.

    Args:
        images: (N, C, H, W), two pixels high and wide at least.
        diagonals: What the norms of the diagonals are multiplied by.
    """
    images = images.float()
    straight = images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]
    falling = images[..., 1:, 1:] - images[..., :-1, :-1]
    rising = images[..., 1:, :-1] - images[..., :-1, 1:]
    norms = [torch.linalg.vector_norm(each) for each in (*straight, falling, rising)]
    total: Tensor = norms[0] + norms[1] + diagonals * (norms[2] + norms[3])
    return total


@part("term", "total_variation")
class TotalVariation(Term):
    """``|TV - v|``, with ``v`` drawn once between two ends; 0, the default, is TV itself.

    PSAQ-ViT's ends are 2500 and 3000, of 32 pictures of 224 x 224. TV grows with the square root of
    how many numbers a batch has, and so the ends are scaled to the batch (ours).

    Source: released code of PSAQ-ViT (Li et al., ECCV 2022); of MaskAQ (ICML 2026) with diagonals
    divided by the square root of 2 and no goal.
    """

    lowest: float = 0.0
    """Lower end of the goal."""
    highest: float = 0.0
    """Upper end of the goal."""
    diagonals: float = 1.0
    """What differences along diagonals are multiplied by."""

    title = "total variation"
    by_sample = False
    several_outputs = True
    goal: ClassVar[Tensor]

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("lowest", self.lowest, 0)
        require_range("highest", self.highest, self.lowest)
        require_range("diagonals", self.diagonals, 0)

    def bind(self, teacher: Network, student: Network) -> Needs:
        """Draw the goal, which is in checkpoints.

        Raises:
            ModelError: the network takes in no pictures of rows and columns.
        """
        pretrained = teacher.pretrained
        if len(pretrained.input_shape) != PICTURE_DIMENSIONS:
            raise ModelError(
                f"the term total_variation is about rows and columns, and {pretrained.name} takes "
                f"inputs of shape {tuple(pretrained.input_shape)}: leave the term out"
            )
        drawn = self.lowest + (self.highest - self.lowest) * torch.rand(())
        self.register_buffer("goal", drawn)
        return Needs()

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss."""
        images = seen.batch.inputs
        goal = self.goal * math.sqrt(images.numel() / REFERENCE)
        return (total_variation(images, self.diagonals) - goal).abs()
