"""Batch-norm statistics: how far a batch's are from those the teacher met in its training."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import reduce
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hast_lightning.core.batch import Needs, Seen
from hast_lightning.core.checks import require_choice, require_range
from hast_lightning.core.ensemble import graphs_of
from hast_lightning.core.network import Network
from hast_lightning.core.part import part
from hast_lightning.core.slices import slices_of, taken
from hast_lightning.core.term import Term
from hast_lightning.errors import ConfigurationError, ModelError
from hast_lightning.graph.operations import BATCH_NORMS
from hast_lightning.graph.tracing import batch_norm_inputs

T = TypeVar("T")
EPSILON = 1e-6
"""What is added to variances before their root is taken."""
SMALLEST_VARIANCE = 1e-3
"""What is added to a variance that errors are relative to: channels that are dead do not drown
the others."""
SPREADS = ("variance", "deviation")


class BatchNormStatistics(NamedTuple):
    """What one BatchNorm layer meets in a batch, and what it met in the teacher's training.

    Four tensors of shape (channels,). ``mean`` and ``var`` are the batch's, over images and
    positions, the variance biased; the running ones are the layer's own.
    """

    mean: Tensor
    var: Tensor
    running_mean: Tensor
    running_var: Tensor


class _Statistics(torch.autograd.Function):
    """Mean and biased variance over some dimensions, with a backward of a single pass.

    Over M values, ``d mean / dx = 1 / M`` and ``d var / dx = 2 (x - mean) / M``, so that the
    gradient is affine in x: ``x * a + b``. Autograd's own takes several passes over an
    activation, which matters at every BatchNorm of every synthesis step.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, dimensions: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        mean, var = _mean_and_variance(features, dimensions)
        ctx.save_for_backward(features, mean)
        return mean.squeeze(dimensions), var.squeeze(dimensions)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        features, mean = ctx.saved_tensors
        grad_mean, grad_var = (gradient.view_as(mean) for gradient in gradients)
        count = features.numel() // mean.numel()
        slope = grad_var * (2.0 / count)
        offset = grad_mean / count - slope * mean
        if features.dtype == mean.dtype:
            return torch.addcmul(offset, features, slope), None
        gradient = torch.empty_like(features)
        for images in slices_of(features):
            gradient[images] = torch.addcmul(
                taken(offset, images), features[images], taken(slope, images)
            )
        return gradient, None


def _mean_and_variance(features: Tensor, dimensions: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(features.dtype, torch.float32)
    if features.device.type != "cpu":
        var, mean = torch.var_mean(features.to(wide), dimensions, correction=0, keepdim=True)
        return mean, var
    # var_mean is not vectorized there: two passes over the data take about a sixth of its time.
    slices = slices_of(features)
    sums = [features[each].sum(dimensions, keepdim=True, dtype=wide) for each in slices]
    mean = _joined(sums, dimensions)
    count = features.numel() // mean.numel()
    mean /= count
    squares = [
        (features[each] - taken(mean, each)).square_().sum(dimensions, keepdim=True)
        for each in slices
    ]
    return mean, _joined(squares, dimensions) / count


def _joined(sums: list[Tensor], dimensions: tuple[int, ...]) -> Tensor:
    """Return the sums of all slices: added up, or by image."""
    return torch.stack(sums).sum(0) if 0 in dimensions else torch.cat(sums)


def channel_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel, over images and positions.

    Computed in float32 whatever precision the network runs in (float64 stays float64).

    Args:
        features: (N, C, ...).

    Returns:
        Two tensors of shape (C,), differentiable once in ``features``.
    """
    mean, var = _Statistics.apply(features, (0, *range(2, features.dim())))
    return mean, var


def statistics_by_image(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel of each image, over positions.

    Args:
        features: (N, C, ...); (N, C) is one position.

    Returns:
        Two tensors of shape (N, C), as those of ``channel_statistics``.
    """
    maps = features.unsqueeze(-1) if features.dim() == 2 else features
    mean, var = _Statistics.apply(maps, tuple(range(2, maps.dim())))
    return mean, var


def batch_norm_statistics_loss(
    statistics: Sequence[BatchNormStatistics],
    mean_weight: float = 1.0,
    variance_weight: float = 1.0,
    *,
    deviations: bool = False,
    relative: bool = False,
) -> Tensor:
    """Return ``mean over layers of [a MSE(mean, running_mean) + b MSE(var, running_var)]``.

    Source: GDFQ (Xu et al., ECCV 2020), IntraQ (Zhong et al., CVPR 2022), HAST (Li et al., CVPR
    2023), with ``a = b = 1``. Relative errors are ours.

    Args:
        statistics: For each BatchNorm layer four tensors of shape (channels,).
        mean_weight: ``a``; 0 leaves means out, also where they are infinite.
        variance_weight: ``b``, likewise.
        deviations: Compare ``sqrt(var + 1e-6)`` in place of ``var``.
        relative: Measure means and deviations in units of the layer's own deviation,
            ``sqrt(running_var + 1e-3)``.

    Returns:
        A scalar, zero when every layer's statistics match.
    """
    layers = []
    for layer in statistics:
        spread, running_spread = layer.var, layer.running_var
        unit = None
        if relative:
            unit = (running_spread + SMALLEST_VARIANCE).rsqrt()
            spread, running_spread = (
                (v + SMALLEST_VARIANCE).sqrt() for v in (spread, layer.running_var)
            )
        elif deviations:
            spread, running_spread = ((v + EPSILON).sqrt() for v in (spread, running_spread))
        pairs = (
            (mean_weight, layer.mean, layer.running_mean),
            (variance_weight, spread, running_spread),
        )
        errors = [
            weight * _squared_error(found, wanted, unit)
            for weight, found, wanted in pairs
            if weight
        ]
        layers.append(reduce(torch.add, errors))
    return torch.stack(layers).mean()


def _squared_error(found: Tensor, wanted: Tensor, unit: Tensor | None) -> Tensor:
    """Return the mean squared error, of values times ``unit`` where there is one."""
    if unit is None:
        return F.mse_loss(found, wanted)
    return ((found - wanted) * unit).square().mean()


class AtBatchNorms(Term):
    """Base class: a term that looks at what the teacher's BatchNorms take in."""

    several_outputs = True
    by_sample = False

    def bind(self, teacher: Network, student: Network) -> Needs:
        """Find the BatchNorms, of all networks that teach together.

        Raises:
            ModelError: there is none with running statistics.
        """
        found = {
            before: [
                # In a tuple of its own, so that the teacher's layers are not registered here.
                (f"{before}{node}", (graph_module.get_submodule(layer),))
                for node, layer in batch_norm_inputs(graph_module)
            ]
            for before, graph_module in graphs_of(teacher).items()
        }
        self._layers = tuple(pair for pairs in found.values() for pair in pairs)
        self._counts = [len(pairs) for pairs in found.values() if pairs]
        if not self._layers:
            raise ModelError(
                f"the network {teacher.pretrained.name} has no BatchNorm with running "
                f"statistics, which the term {self.kind} matches synthetic images to"
            )
        return Needs(teacher=tuple(node for node, _ in self._layers), batch_norms=True)

    def by_member(self, layers: Iterable[T]) -> list[list[T]]:
        """Return what there is of each BatchNorm, apart for each network that teaches.

        Networks without BatchNorms are left out.
        """
        remaining = iter(layers)
        return [list(islice(remaining, count)) for count in self._counts]

    def inputs(self, seen: Seen) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield what each BatchNorm takes in, (N, C, ...), with its running mean and variance."""
        for node, (layer,) in self._layers:
            assert isinstance(layer, BATCH_NORMS)
            assert layer.running_mean is not None
            assert layer.running_var is not None
            yield seen.teacher.values[node], layer.running_mean, layer.running_var

    def statistics(self, seen: Seen) -> list[BatchNormStatistics]:
        """Return the statistics at each BatchNorm, in order of execution."""
        return [
            BatchNormStatistics(*channel_statistics(values), *running)
            for values, *running in self.inputs(seen)
        ]


@part("term", "bns")
class BNS(AtBatchNorms):
    """Batch-norm statistics loss: the batch is to have those that the teacher's layers expect.

    ``mean over layers of [a MSE(mean, running_mean) + b MSE(var, running_var)]``, over channels.

    Source: GDFQ (Xu et al., ECCV 2020), IntraQ (Zhong et al., CVPR 2022), HAST (Li et al., CVPR
    2023). That means or spreads alone are matched is an ablation of Sevsay and Akagunduz (arXiv
    2408.13925), of which no formula or code is known: its form here is ours.
    """

    mean_weight: float = 1.0
    """What the error of means is multiplied by; 0 matches variances alone."""
    variance_weight: float = 1.0
    """What the error of variances is multiplied by; 0 matches means alone."""
    spread: str = "variance"
    """``variance`` as in the papers, or ``deviation``: the root of it and 1e-6, which is in the
    units of the mean."""
    relative: bool = False
    """Means and deviations in units of each channel's own deviation, so that layers of large
    values do not drown the others (ours)."""

    title = "BatchNorm statistics loss"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("mean_weight", self.mean_weight, 0)
        require_range("variance_weight", self.variance_weight, 0)
        require_choice("spread", self.spread, SPREADS)
        if not (self.mean_weight or self.variance_weight):
            raise ConfigurationError(
                "mean_weight=0 and variance_weight=0 leave the term bns nothing to match: "
                "enabled=false leaves it out"
            )

    def unused(self) -> Collection[str]:
        """Return the settings that say nothing: relative errors are of deviations anyway."""
        return () if self.variance_weight and not self.relative else ("spread",)

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss; where several networks teach, the mean of theirs."""
        losses = [
            batch_norm_statistics_loss(
                layers,
                self.mean_weight,
                self.variance_weight,
                deviations=self.spread == "deviation",
                relative=self.relative,
            )
            for layers in self.by_member(self.statistics(seen))
        ]
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()
