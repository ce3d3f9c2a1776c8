"""ZeroQ (Cai et al., CVPR 2020): statistics of every image, not of the batch.

Its mean and deviation of the images themselves is the term ``image_statistics``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hast_lightning.core.batch import Seen
from hast_lightning.core.part import part
from hast_lightning.terms.bns import AtBatchNorms, statistics_by_image

EPSILON = 1e-6
"""What is added to variances before their root is taken."""


def per_image_loss(values: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    """Return the distance of each image's statistics from a layer's, averaged over images.

    ``sum over channels of [(mu_n - running_mean)^2 + (sd_n - sd)^2]``, where ``mu_n`` and ``sd_n``
    are over rows and columns of image n. A map of one position has no deviation: its mean alone
    counts, where the released code gives NaN.

    Args:
        values: (N, C, ...) that a BatchNorm takes in; ``sd_n`` is unbiased.
        running_mean: (C,).
        running_var: (C,); ``sd`` is the root of it and 1e-6, as ``sd_n`` is of the image's.
    """
    mean, var = statistics_by_image(values)
    distance = (mean - running_mean).square()
    positions = values.numel() // mean.numel()
    if positions > 1:
        deviation = (var * positions / (positions - 1) + EPSILON).sqrt()
        distance = distance + (deviation - (running_var + EPSILON).sqrt()).square()
    return distance.sum(dim=1).mean()


@part("term", "bns_per_image")
class BNSPerImage(AtBatchNorms):
    """Mean and deviation of every single image at every BatchNorm, summed over channels and layers.

    Source: ZeroQ (Cai et al., CVPR 2020), released code, which reads them where convolutions put
    them out. Unlike ``bns``, images cannot make up for each other.
    """

    title = "BatchNorm means and deviations per image"
    by_sample = True

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss."""
        return torch.stack([per_image_loss(*each) for each in self.inputs(seen)]).sum()
