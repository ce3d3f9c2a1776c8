"""What is known of TexQ (Chen et al., NeurIPS 2023): BatchNorm statistics by depth, class centers.

From summaries, and from what SynQ's code (Kim et al., ICLR 2025) re-implements of it. The energy of
textures, which TexQ is named after, is not public and not here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar, TypeVar

import torch
from omegaconf import MISSING
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from hast_lightning.core.batch import Needs, Seen
from hast_lightning.core.checks import require_range
from hast_lightning.core.network import Network
from hast_lightning.core.part import part
from hast_lightning.core.source import Site
from hast_lightning.core.stage import Bench
from hast_lightning.errors import ConfigurationError
from hast_lightning.graph.operations import BATCH_NORMS
from hast_lightning.runtime.ranks import rank
from hast_lightning.sources.image_bank import ImageBank
from hast_lightning.stages.reading import require_source
from hast_lightning.stages.synthesize import Synthesize
from hast_lightning.terms.bns import AtBatchNorms, BatchNormStatistics, channel_statistics

T = TypeVar("T")
AT_ONCE = 64
"""Centers that go through the teacher together."""


def first_deep_layer(layers: int) -> int:
    """Return the place of the first BatchNorm that counts as deep, of so many."""
    return max((layers + 2) // 2 - 2, 0)


def deep(layers: Sequence[T]) -> Sequence[T]:
    """Return those of one network's BatchNorms that count as deep."""
    return layers[first_deep_layer(len(layers)) :]


def layer_loss(layer: BatchNormStatistics) -> Tensor:
    """Return ``MSE(mean, running_mean) + MSE(var, running_var)`` of one layer, a scalar."""
    return F.mse_loss(layer.mean, layer.running_mean) + F.mse_loss(layer.var, layer.running_var)


@part("term", "layered_bns")
class LayeredBNS(AtBatchNorms):
    """Batch-norm statistics loss that counts deep layers more than shallow ones.

    ``mean over layers of w_l [MSE(mean, running_mean) + MSE(var, running_var)]``; a layer is deep
    from the place ``(L + 2) // 2 - 2`` of L on, counted from 0. Where several networks teach, each
    has its own halves, and the loss is the mean of theirs.

    Source: TexQ (Chen et al., NeurIPS 2023) as SynQ's code has it. That it is a mean and not a sum
    is as in ``bns``.
    """

    shallow: float = 0.2
    """Weight of a layer of the first half."""
    deep: float = 1.1
    """Weight of a layer of the second half."""

    title = "BatchNorm statistics loss by depth"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("shallow", self.shallow, 0)
        require_range("deep", self.deep, 0)

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss."""
        found = [self._of_one(layers) for layers in self.by_member(self.statistics(seen))]
        return torch.stack(found).mean()

    def _of_one(self, layers: Sequence[BatchNormStatistics]) -> Tensor:
        """Return the scalar loss of one network."""
        losses = torch.stack([layer_loss(layer) for layer in layers])
        weights = torch.full_like(losses, self.deep)
        weights[: first_deep_layer(len(losses))] = self.shallow
        return (weights * losses).mean()


@part("term", "center_statistics")
class CenterStatistics(AtBatchNorms):
    """Deep layers' statistics towards those that the centers of the classes have.

    ``sum over deep layers of [MSE(mean, center mean) + MSE(var, center var)] / (L N)`` for N images
    and L BatchNorms; where several networks teach, the mean over them. The centers' statistics are
    those of all centers together: the mean of means, the variance within and between. The stage
    ``synthesize_near_centers`` measures them.

    Source: SynQ's code (Kim et al., ICLR 2025) of TexQ's second stage. There the first batch of
    centers enters the variance unweighted; here all enter alike.
    """

    weight: float = 0.02
    """What the term is multiplied by; 0 leaves it out."""
    by_images: bool = True
    """Divide by the images of the batch, too, as that code does; at 256 next to nothing is left."""

    title = "Statistics of class centers"
    means: ClassVar[Tensor]
    variances: ClassVar[Tensor]
    fed = False

    def bind(self, teacher: Network, student: Network) -> Needs:
        """Find the BatchNorms, and make room for the centers' statistics."""
        needs = super().bind(teacher, student)
        # In a tuple, so that the teacher is not registered here.
        self._teacher, self._needs = (teacher,), needs
        layers = [layer for _, (layer,) in self._layers if isinstance(layer, BATCH_NORMS)]
        self._sizes = self._of_deep([layer.num_features for layer in layers])
        for name in ("means", "variances"):
            self.register_buffer(name, torch.zeros(sum(self._sizes)))
        return needs

    def _of_deep(self, layers: Sequence[T]) -> list[T]:
        """Return what there is of each deep BatchNorm of each network that teaches."""
        return [each for member in self.by_member(layers) for each in deep(member)]

    @torch.no_grad()
    def measure(self, centers: Tensor) -> None:
        """Take the statistics of ``centers`` (N, C, H, W), all together."""
        means, variances, shares = [], [], []
        for images in torch.split(centers, AT_ONCE):
            trace = self._teacher[0].trace(images, self._needs.teacher, unfolded=True)
            found = [channel_statistics(trace.values[node]) for node, _ in self._layers]
            mean, variance = map(torch.cat, zip(*self._of_deep(found), strict=True))
            means.append(mean)
            variances.append(variance)
            shares.append(len(images) / len(centers))
        weights = torch.tensor(shares, device=self.means.device)
        self.means.copy_(weights @ torch.stack(means))
        between = (torch.stack(means) - self.means).square()
        self.variances.copy_(weights @ (torch.stack(variances) + between))

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss.

        Raises:
            ConfigurationError: the stage does not measure centers.
        """
        if not self.fed:
            raise ConfigurationError(
                f"the term {self.kind} needs the stage synthesize_near_centers, which measures them"
            )
        images = len(seen.batch.inputs) if self.by_images else 1
        centers = zip(
            *(torch.split(x, self._sizes) for x in (self.means, self.variances)), strict=True
        )
        losses = []
        for layers in self.by_member(self.statistics(seen)):
            distances = [
                layer_loss(BatchNormStatistics(layer.mean, layer.var, *next(centers)))
                for layer in deep(layers)
            ]
            losses.append(torch.stack(distances).sum() / (len(layers) * images))
        return torch.stack(losses).mean()


@part("source", "class_centers")
class ClassCenters(ImageBank):
    """A bank of one image for each class, in the order of the classes.

    ``size`` does not count: it is the number of classes, and ``batch_size`` is lowered to a divisor
    of each process's share of them.

    Source: first stage of TexQ (Chen et al., NeurIPS 2023) as SynQ's code has it: Adam at 0.5,
    reduced on plateaus to no less than 0.05, at most 1,500 steps.
    """

    iterations: int = 1500
    """Optimizer steps that each batch of centers gets."""
    min_lr: float = 0.05
    """The rate does not fall below this."""

    several_outputs = False

    def __post_init__(self) -> None:
        require_range("size", self.size, 1)
        require_range("batch_size", self.batch_size, 1)
        # Until the number of classes is known: one must be a multiple of the other.
        self.size = self.batch_size
        super().__post_init__()

    def unused(self) -> Collection[str]:
        """Return the size, too, which the network says."""
        return ("size", *super().unused())

    def build(self, site: Site) -> None:
        """Draw the first batch, or read saved centers.

        Raises:
            ConfigurationError: the classes cannot be divided among the processes.
            DataError: as :meth:`ImageBank.build`.
        """
        if self.load is None:
            # The run has a copy of the settings.
            self.size = site.pretrained.num_classes
            share = max(self.size // site.processes, 1)
            self.batch_size = max(
                n for n in range(1, min(self.batch_size, share) + 1) if share % n == 0
            )
        super().build(site)
        self._label()

    def part_ways(self) -> None:
        """Draw the active images afresh, of the classes that are this rank's turn."""
        super().part_ways()
        self._label()

    def _start_fresh_batch(self, optimizer: Optimizer) -> None:
        super()._start_fresh_batch(optimizer)
        self._label()

    def _label(self) -> None:
        start = self.position + rank() * self.batch_size
        labels = torch.arange(start, start + self.batch_size) % self.site.pretrained.num_classes
        self.active_labels.copy_(labels)


@part("stage", "synthesize_near_centers")
class SynthesizeNearCenters(Synthesize):
    """Improves the samples of a source, with the statistics of another one's for its terms.

    The terms ``center_statistics`` are told of the other source's samples when the stage begins.

    Source: TexQ (Chen et al., NeurIPS 2023), as summaries and SynQ's code have it.
    """

    centers: str = MISSING
    """Name of the source of the class centers."""
    most_centers: int = 1000
    """Samples of it that are measured, at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("most_centers", self.most_centers, 1)

    @property
    def reads(self) -> tuple[str, ...]:
        """Return the name of the source of the centers."""
        return (self.centers,)

    def bind(self, bench: Bench) -> None:
        """Check both sources, and what the terms need.

        Raises:
            UserError: there is no such source, or a term does not fit.
        """
        require_source(bench, self.centers, self.key)
        super().bind(bench)
        self._fed = [term for term in self._terms.values() if isinstance(term, CenterStatistics)]
        for term in self._fed:
            term.fed = True

    def begin(self, bench: Bench) -> None:
        """Measure the centers."""
        images = bench.layout(bench.sources[self.centers].collect(self.most_centers).inputs)
        for term in self._fed:
            term.measure(images)
