"""Mean and deviation of synthetic images: those of normalized pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from hast_lightning.core.batch import Needs, Seen
from hast_lightning.core.network import Network
from hast_lightning.core.part import part
from hast_lightning.core.term import Term


@part("term", "image_statistics")
class ImageStatistics(Term):
    """Each channel of each image towards mean 0 and deviation 1.

    ``mean over images of the sum over channels of [mean^2 + (deviation - 1)^2]``. Of
    features towards the mean and the deviation that the network expects.

    Source: released codes of ZeroQ (Cai et al., CVPR 2020) and of GENIE (Jeon et al., CVPR 2023).
    """

    title = "mean and deviation of images"
    several_outputs = True

    def bind(self, teacher: Network, student: Network) -> Needs:
        """Look at what values the network takes in."""
        self._network = teacher.pretrained
        return self.needs

    def forward(self, seen: Seen) -> Tensor:
        """Return the squared distances, summed over channels, their mean over images."""
        inputs = self._network.standardized(seen.batch.inputs.float()).flatten(2)
        deviation, mean = torch.std_mean(inputs, dim=2, correction=1)
        return (mean.square() + (deviation - 1).square()).sum(dim=1).mean()
