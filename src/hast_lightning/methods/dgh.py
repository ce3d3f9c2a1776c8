"""DGH (Sony, Model Compression Toolkit): images whose statistics match as a set.

In a bank every batch has to match the teacher's BatchNorm statistics on its own. Here the whole set
has to, which leaves single images free to differ. Formulas and rates are the released toolkit's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from hast_lightning.core.batch import Batch, Needs, Progress, Seen
from hast_lightning.core.checks import require_range
from hast_lightning.core.network import PICTURES, TOKENS, Network
from hast_lightning.core.part import part
from hast_lightning.core.source import Site
from hast_lightning.core.stage import Bench, Outcome
from hast_lightning.core.term import Term
from hast_lightning.errors import ConfigurationError
from hast_lightning.sources.image_bank import ImageBank
from hast_lightning.stages.loss import see
from hast_lightning.stages.synthesize import Synthesize
from hast_lightning.terms.bns import BNS, channel_statistics

WHITE = 255.0
"""The largest pixel."""
BLUR = 1.25
"""Standard deviation of the 3 x 3 Gaussian, in pixels."""
WAITS = 50
"""Plateaus that the iterations of a batch have room for."""
EPSILON = 1e-6
"""What is added to the set's variances before their root is taken."""
BETTER = 1 - 1e-4
"""A loss counts as lower below this multiple of the lowest."""


def blurred(images: Tensor) -> Tensor:
    """Return ``images`` (N, C, H, W) behind a 3 x 3 Gaussian; borders are repeated outwards."""
    side = torch.exp(-torch.tensor([-1.0, 0.0, 1.0]).square() / (2 * BLUR**2)).to(images)
    kernel = torch.outer(side, side)
    channels = images.shape[1]
    weight = (kernel / kernel.sum()).expand(channels, 1, 3, 3)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), weight, groups=channels)


@part("source", "image_set")
class ImageSet(ImageBank):
    """Images that are optimized together as one set: all batches take turns (DGH).

    An iteration is a step of each batch, in an order that is drawn anew. Images are pixels from 0
    to 255, larger than the network takes; it sees them flipped or not, blurred and cropped at
    random, one draw for a batch. In the end they are blurred and cropped in the centre. They have
    no labels, and none is finished before the last step. Ranks have a set each, of their share.

    Source: Sony's Model Compression Toolkit, as released: RAdam at 16, halved on plateaus of a
    fiftieth of the iterations, a 3 x 3 Gaussian, 32 pixels more than 224. Noise of deviation 1 as a
    start, and the same share of other sizes, are ours.
    """

    size: int = 1024
    """Images in the set."""
    batch_size: int = 32
    """Images that go through the network at once."""
    iterations: int = 500
    """Optimizer steps that each batch of images gets."""
    lr: float = 16.0
    """Learning rate of RAdam, in pixels from 0 to 255."""
    patience: int | None = None  # type: ignore[assignment]  # a number once it is checked
    """Steps of a batch without a lower loss after which its rate falls; null: a fiftieth of
    ``iterations``."""
    factor: float = 0.5
    """What the rate is then multiplied by."""
    extra: float = 1 / 7
    """Share of the network's height and width that images have more."""

    label_kind = "none"
    # The labels in a file of this kind mean nothing.
    file_kind = "image-set"

    modalities = (PICTURES,)

    order: ClassVar[Tensor]
    lowest: ClassVar[Tensor]
    waited: ClassVar[Tensor]
    pixel_mean: ClassVar[Tensor]
    pixel_std: ClassVar[Tensor]

    def __post_init__(self) -> None:
        if self.patience is None:
            self.patience = self.iterations // WAITS
        super().__post_init__()
        require_range("extra", self.extra, 0, 1)

    def unused(self) -> Collection[str]:
        """Return what a bank may choose: the set has noise and plateaus of its own."""
        return ("start", "falls")

    def build(self, site: Site) -> None:
        """Draw the set, or read a saved one.

        Raises:
            ConfigurationError: as :meth:`ImageBank.build`.
            DataError: likewise.
        """
        super().build(site)
        del self.active
        channels, height, width = site.pretrained.input_shape
        self.register_buffer("active", torch.zeros(self.batch_size, channels, height, width))
        for name in ("mean", "std"):
            values = torch.tensor(getattr(site.pretrained, name)).view(-1, 1, 1)
            self.register_buffer(f"pixel_{name}", WHITE * values, persistent=False)
        larger = [side + round(self.extra * side) for side in (height, width)]
        batches = self.count // (self.batch_size * self.processes)
        shape = (self.batch_size, channels, *larger)
        self.pixels = nn.ParameterList(torch.zeros(shape) for _ in range(batches))
        self.register_buffer("order", torch.zeros(batches, dtype=torch.int64))
        self.register_buffer("lowest", torch.full((batches,), torch.inf, dtype=torch.float64))
        self.register_buffer("waited", torch.zeros(batches, dtype=torch.int64))
        self.part_ways()

    @property
    def batches(self) -> int:
        """Return the batches of this rank."""
        return len(self.pixels)

    @property
    def turn(self) -> int:
        """Return the number of the batch whose turn it is."""
        return int(self.order[self.iteration % self.batches])

    @property
    def steps_to_start(self) -> int:
        """Return the optimizer steps until images are finished: all are at once."""
        return 0 if self.filled else self.steps_to_fill

    @torch.no_grad()
    def part_ways(self) -> None:
        """Draw all images and the first order afresh, from this rank's streams."""
        for batch in self.pixels:
            batch.normal_().mul_(self.pixel_std).add_(self.pixel_mean).clamp_(0, WHITE)
        self.order.copy_(torch.randperm(self.batches))

    def own_state(self) -> dict[str, Any]:
        """Return all images and their turns, too."""
        turns = {name: getattr(self, name).cpu() for name in ("order", "lowest", "waited")}
        return {**super().own_state(), **turns, "pixels": [p.detach().cpu() for p in self.pixels]}

    @torch.no_grad()
    def set_own_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`own_state` returned."""
        super().set_own_state(state)
        for name in ("order", "lowest", "waited"):
            getattr(self, name).copy_(state[name])
        for batch, saved in zip(self.pixels, state["pixels"], strict=True):
            batch.copy_(saved)

    def propose(self) -> Batch:
        """Return a view of the batch whose turn it is, (B, C, H, W), with its graph."""
        images = self.pixels[self.turn]
        flip, down, right = torch.rand(3).tolist()
        if flip < 0.5:
            images = images.flip(3)
        height, width = self.active.shape[2:]
        top, left = (
            int(draw * (there - wanted + 1))
            for draw, there, wanted in zip(
                (down, right), images.shape[2:], (height, width), strict=True
            )
        )
        view = blurred(images)[..., top : top + height, left : left + width]
        view = (view - self.pixel_mean) / self.pixel_std
        self.active.copy_(view.detach())
        return Batch(view)

    @torch.no_grad()
    def finalized(self, number: int) -> Tensor:
        """Return the images of a batch as they are stored, (B, C, H, W)."""
        images = blurred(self.pixels[number])
        height, width = self.active.shape[2:]
        top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
        centre = images[..., top : top + height, left : left + width]
        return (centre - self.pixel_mean) / self.pixel_std

    def optimizers(self) -> Mapping[str, Optimizer]:
        """Return RAdam, in which each batch is a group with a rate of its own."""
        groups = [{"params": [batch]} for batch in self.pixels]
        return {"radam": torch.optim.RAdam(groups, lr=self.lr)}

    @torch.no_grad()
    def improved(self, loss: float, optimizers: Mapping[str, Optimizer]) -> Batch | None:
        """Keep pixels valid, reduce the batch's rate on a plateau, and give the turn to another.

        Returns:
            All images of all ranks after the last step.

        Raises:
            FloatingPointError: they are NaN or infinite.
        """
        number = self.turn
        self.pixels[number].clamp_(0, WHITE)
        self._step_rate(number, loss, optimizers["radam"].param_groups[number])
        self.iteration += 1
        if self.iteration % self.batches == 0:
            self.order.copy_(torch.randperm(self.batches))
        if self.iteration < self.steps_to_fill:
            return None
        self.iteration = 0
        return Batch(torch.cat([self._stored(number) for number in range(self.batches)]))

    def _step_rate(self, number: int, loss: float, group: dict[str, Any]) -> None:
        """Multiply the rate after too many steps without a lower loss, and forget the lowest."""
        if loss < BETTER * float(self.lowest[number]):
            self.lowest[number], self.waited[number] = loss, 0
        else:
            self.waited[number] += 1
        assert self.patience is not None
        if self.waited[number] > self.patience:
            group["lr"] = max(self.factor * group["lr"], self.min_lr)
            self.lowest[number], self.waited[number] = torch.inf, 0

    def _stored(self, number: int) -> Tensor:
        """Write a batch to the bank, and return it with those of the other ranks."""
        self.active.copy_(self.finalized(number))
        return self._store_active_batch().inputs


def set_moments(values: Sequence[Tensor]) -> Tensor:
    """Return means and second moments of channels, (2, channels of all layers), float64.

    Args:
        values: Of each layer (N, C, H, W), in which the result is differentiable.
    """
    found = [channel_statistics(each) for each in values]
    means, variances = (torch.cat(each).double() for each in zip(*found, strict=True))
    return torch.stack([means, variances + means.square()])


@part("term", "set_statistics")
class SetStatistics(BNS):
    """Means and deviations at every BatchNorm over a whole set of images (DGH).

    ``mean over layers of [MSE(mean, running_mean) + MSE(sd, sqrt(running_var))]``, in which mean
    and second moment are those of all batches. The other batches' were measured when they were last
    improved; only those of the batch at hand have a gradient. Without the stage ``synthesize_set``
    the batch at hand is the set.

    Source: Sony's Model Compression Toolkit, as released.
    """

    title = "BatchNorm statistics of the set"
    moments: ClassVar[Tensor]

    def bind(self, teacher: Network, student: Network) -> Needs:
        """Find the BatchNorms.

        Raises:
            ModelError: the teacher has none with running statistics.
        """
        needs = super().bind(teacher, student)
        self.number = 0
        self.allocate(1)
        return needs

    def allocate(self, batches: int) -> None:
        """Make room for the moments of so many batches: (2, batches, channels of all layers)."""
        layers: list[nn.BatchNorm2d] = [layer for _, (layer,) in self._layers]  # type: ignore[misc]
        self._widths = [layer.num_features for layer in layers]
        moments = torch.zeros(2, batches, sum(self._widths), dtype=torch.float64)
        self.register_buffer("moments", moments)

    @torch.no_grad()
    def measure(self, number: int, seen: Seen) -> None:
        """Have the moments of a batch from now on."""
        self.moments[:, number] = self._moments(seen)

    def _moments(self, seen: Seen) -> Tensor:
        return set_moments([values for values, _, _ in self.inputs(seen)])

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss, for the batch of the number that the stage has set."""
        batches = self.moments.shape[1]
        # Left out by a mask: their own sum less this batch would lose digits.
        others = torch.arange(batches, device=self.moments.device) != self.number
        summed = self.moments[:, others].sum(dim=1) + self._moments(seen)
        mean, square = (summed / batches).unbind()
        deviation = ((square - mean.square()).clamp_min(0) + EPSILON).sqrt()
        found = zip(
            torch.split(mean, self._widths), torch.split(deviation, self._widths), strict=True
        )
        layers = [
            F.mse_loss(mean, running_mean.double())
            + F.mse_loss(deviation, running_var.double().sqrt())
            for (mean, deviation), (_, running_mean, running_var) in zip(
                found, self.inputs(seen), strict=True
            )
        ]
        return torch.stack(layers).mean().float()


@part("term", "logit_range")
class LogitRange(Term):
    """Mean of ``min - max`` of the logits, so that the teacher is drawn to an answer (DGH).

    Source: Sony's Model Compression Toolkit, as released, with a weight of 1e-5.
    """

    title = "range of logits"
    modalities = (*Term.modalities, TOKENS)

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss, which is negative."""
        low, high = seen.teacher.logits.float().aminmax(dim=1)
        return (low - high).mean()


@part("stage", "synthesize_set")
class SynthesizeSet(Synthesize):
    """Improves a set of images whose statistics are measured over all of it (DGH).

    All batches are measured before the first step, and each again when it was improved, as it would
    be stored.

    Source: Sony's Model Compression Toolkit, as released.
    """

    def bind(self, bench: Bench) -> None:
        """Make room for the moments of all batches.

        Raises:
            UserError: as :meth:`Synthesize.bind`, or the source is no ``image_set``.
        """
        super().bind(bench)
        source = self._source[0]
        if not isinstance(source, ImageSet):
            raise ConfigurationError(
                f"{self.key}.source={self.source}: {self.kind} improves an image_set, and this is "
                f"a source of kind {source.kind}"
            )
        for term in self._set_terms:
            term.allocate(source.batches)

    @property
    def _set_terms(self) -> list[SetStatistics]:
        return [term for term in self._terms.values() if isinstance(term, SetStatistics)]

    @property
    def _set(self) -> ImageSet:
        source = self._source[0]
        assert isinstance(source, ImageSet)
        return source

    def begin(self, bench: Bench) -> None:
        """Measure all batches."""
        for number in range(self._set.batches):
            self._measure(bench, number)

    def improve(self, bench: Bench, progress: Progress) -> Outcome:
        """Improve the batch whose turn it is, and measure it again."""
        number = self._set.turn
        for term in self._set_terms:
            term.number = number
        outcome = super().improve(bench, progress)
        self._measure(bench, number)
        return outcome

    @torch.no_grad()
    def _measure(self, bench: Bench, number: int) -> None:
        inputs = bench.layout(self._set.finalized(number))
        progress = Progress(self.name, number + 1, self._set.batches)
        seen = see(Batch(inputs), self._needs._replace(student=None), bench.teacher, None, progress)
        for term in self._set_terms:
            term.measure(number, seen)
