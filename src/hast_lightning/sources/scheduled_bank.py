"""A bank of images whose learning rate follows a schedule and which move while they are made.

PSAQ-ViT and MimiQ make their pictures so, and keep their pixels valid.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import field

import torch
from torch import Tensor
from torch.optim import Optimizer

from hast_lightning.core.batch import Batch
from hast_lightning.core.checks import MAX_RATE, require_range
from hast_lightning.core.network import PICTURES
from hast_lightning.core.part import part
from hast_lightning.core.source import Site
from hast_lightning.errors import ConfigurationError
from hast_lightning.graph.outputs import puts_out_maps
from hast_lightning.sources.image_bank import RATE_FALLS, ImageBank
from hast_lightning.sources.suitability import image_shape


@part("source", "scheduled_bank")
class ScheduledBank(ImageBank):
    """An image bank with AdamW, rounds of warm-up and cosine, and images rolled at every step.

    Defaults are PSAQ-ViT's (Li et al., ECCV 2022, released code); at a weight decay of 0 AdamW is
    Adam. ``patience``, ``factor`` and ``min_lr`` have no meaning here.
    """

    size: int = 32
    """Images in the bank."""
    batch_size: int = 32
    """Images that are optimized together."""
    lr: float = 0.2
    """Highest learning rate, in normalized pixel units a step."""
    rounds: int = 2
    """Parts of the iterations, each with a warm-up and a cosine; Adam's state stays."""
    warmup: float = 0.2
    """Share of a round in which the rate rises."""
    last: float = 0.0
    """Rate at the end of a round, as a share of the highest."""
    beta1: float = 0.5
    """Of AdamW."""
    beta2: float = 0.9
    """Of AdamW."""
    weight_decay: float = 0.0
    """Of AdamW."""
    rolls: list[float] = field(default_factory=lambda: [15 / 224, 30 / 224])
    """Largest shift of the whole batch, as shares of an image's height, each for an equal part of
    the iterations; none: images stay."""
    one_offset: bool = True
    """Shift rows and columns by the same number."""
    flip: float = 0.5
    """Probability that the whole batch is mirrored."""
    clamp: bool = True
    """Keep pixels between black and white."""

    # Coefficients of features would be mirrored, and rolled as rows are.
    modalities = (PICTURES,)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("rounds", self.rounds, 1)
        require_range("warmup", self.warmup, 0, 1)
        require_range("last", self.last, 0, 1)
        for name in ("beta1", "beta2"):
            require_range(name, getattr(self, name), 0, 0.9999)
        require_range("weight_decay", self.weight_decay, 0, MAX_RATE)
        require_range("flip", self.flip, 0, 1)
        for share in self.rolls:
            require_range("rolls", share, 0, 1)

    def unused(self) -> Collection[str]:
        """Return how an image bank lowers its rate, which here follows the rounds."""
        return (*RATE_FALLS, "falls")

    def build(self, site: Site) -> None:
        """Draw the first batch, or read a saved bank; remember what pixels are valid.

        Raises:
            UserError: as of ``image_bank``; or the network takes signals.
        """
        image_shape(site.pretrained, f"{site.key}={self.kind}")
        super().build(site)
        moves = puts_out_maps(site.pretrained.network) or site.pretrained.outputs is not None
        if moves and (self.rolls or self.flip):
            raise ConfigurationError(
                f"{site.key}.rolls: answers of a network for each position move with the images; "
                "rolls=[] flip=0 leave them where they are"
            )
        mean, std = (
            torch.tensor(each).view(-1, 1, 1)
            for each in (site.pretrained.mean, site.pretrained.std)
        )
        self.register_buffer("black", -mean / std, persistent=False)
        self.register_buffer("white", (1 - mean) / std, persistent=False)

    def rate(self, iteration: int) -> float:
        """Return the learning rate of an iteration, counted from 0."""
        length = math.ceil(self.iterations / self.rounds)
        at, warm = iteration % length, round(self.warmup * length)
        if at < warm:
            return self.lr * (at + 1) / warm
        falling = 0.5 * (1 + math.cos(math.pi * (at - warm) / max(length - warm, 1)))
        return self.lr * (self.last + (1 - self.last) * falling)

    def optimizers(self) -> Mapping[str, Optimizer]:
        """Return AdamW over the active batch."""
        adam = torch.optim.AdamW(
            [self.active],
            lr=self.rate(self.iteration),
            betas=(self.beta1, self.beta2),
            weight_decay=self.weight_decay,
        )
        return {"adam": adam}

    def propose(self) -> Batch:
        """Return the active batch, shifted and perhaps mirrored for this iteration."""
        batch = super().propose()
        return batch._replace(inputs=self._moved(batch.inputs))

    def _moved(self, images: Tensor) -> Tensor:
        if self.rolls:
            place = self.iteration * len(self.rolls) // self.iterations
            most = round(self.rolls[place] * images.shape[-2])
            first, second = (int(n) for n in torch.randint(-most, most + 1, (2,)))
            offsets = (first, first if self.one_offset else second)
            images = torch.roll(images, offsets, dims=(-2, -1))
        return images.flip(-1) if self.flip and float(torch.rand(())) < self.flip else images

    def improved(self, loss: float, optimizers: Mapping[str, Optimizer]) -> Batch | None:
        """Keep pixels valid, set the next rate, and move on when the batch had its steps."""
        if self.clamp:
            with torch.no_grad():
                black, white = self.get_buffer("black"), self.get_buffer("white")
                self.active.copy_(torch.minimum(torch.maximum(self.active, black), white))
        return super().improved(loss, optimizers)

    def _step_plateau(self, loss: float, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.rate(self.iteration + 1)

    def _begin_plateau(self, optimizer: Optimizer) -> None:
        super()._begin_plateau(optimizer)
        for group in optimizer.param_groups:
            group["lr"] = self.rate(0)
