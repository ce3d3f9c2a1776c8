"""GENIE (Jeon et al., CVPR 2023): what its synthesis has beside a latent bank.

Its second half, GENIE-M, is the stage ``reconstruct``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hast_lightning.core.batch import Progress, Seen
from hast_lightning.core.part import part
from hast_lightning.core.stage import Bench, Outcome
from hast_lightning.stages.synthesize import Synthesize
from hast_lightning.terms.bns import AtBatchNorms, channel_statistics

EPSILON = 1e-6
"""What is added to running variances before their root is taken."""
SMALLEST = 1e-12
"""Variance below which a channel counts as constant, and is left as it is."""


def deviation_loss(values: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    """Return ``mean (mu - running_mean)^2 + mean (sd - sqrt(running_var + 1e-6))^2``, a scalar.

    Args:
        values: (N, C, ...) that a BatchNorm takes in; ``sd`` is unbiased, over all but channels.
        running_mean: (C,).
        running_var: (C,).
    """
    mean, variance = channel_statistics(values)
    count = values.numel() // mean.numel()
    # The root has no slope at 0, which a channel of a pruned filter has.
    variance = (variance * count / max(count - 1, 1)).clamp_min(SMALLEST)
    deviation = (running_var + EPSILON).sqrt()
    return F.mse_loss(mean, running_mean) + F.mse_loss(variance.sqrt(), deviation)


@part("term", "bn_deviations")
class BatchNormDeviations(AtBatchNorms):
    """Means and standard deviations at every BatchNorm, summed over layers (GENIE-D).

    Source: Jeon et al., CVPR 2023, released code. Unlike ``bns`` it compares standard deviations,
    not variances, and adds the layers up.
    """

    title = "BatchNorm means and deviations"

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss."""
        return torch.stack([deviation_loss(*each) for each in self.inputs(seen)]).sum()


def shifted(images: Tensor, row: int, column: int) -> Tensor:
    """Return ``images`` (N, C, H, W) padded by reflection, cropped back at an offset of 0 to 2."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    return padded[..., row : row + height, column : column + width]


def strided_convolutions(network: nn.Module) -> list[nn.Conv2d]:
    """Return the convolutions that leave out places, in the order of their definition."""
    return [
        module
        for module in network.modules()
        if isinstance(module, nn.Conv2d) and max(module.stride) > 1
    ]


@contextmanager
def swinging(network: nn.Module) -> Iterator[None]:
    """Have strided convolutions see inputs that are shifted by up to one pixel, at random.

    A strided convolution never sees some of its input's places, where images would be left as they
    are. There is one draw a forward pass for a whole batch.

    Source: swing convolution, GENIE (Jeon et al., CVPR 2023, section 3.2).
    """

    def swing(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        images, *others = given
        if min(images.shape[-2:]) < 2:  # reflection needs a neighbor
            return None
        row, column = torch.randint(3, (2,)).tolist()
        return shifted(images, row, column), *others

    handles = [layer.register_forward_pre_hook(swing) for layer in strided_convolutions(network)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@part("stage", "synthesize_swinging")
class SynthesizeSwinging(Synthesize):
    """Improves the samples of a source against a teacher with swing convolutions (GENIE-D).

    Source: Jeon et al., CVPR 2023.
    """

    def improve(self, bench: Bench, progress: Progress) -> Outcome:
        """Improve one batch."""
        with swinging(bench.teacher.graph_module):
            return super().improve(bench, progress)
