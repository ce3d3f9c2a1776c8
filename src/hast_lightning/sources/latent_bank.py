"""A bank whose images come of latents and a small generator, both trained, anew for each batch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hast_lightning.core.batch import Batch
from hast_lightning.core.checks import MAX_RATE, require_choice, require_range
from hast_lightning.core.part import part
from hast_lightning.core.source import Site
from hast_lightning.sources.image_bank import ImageBank
from hast_lightning.sources.suitability import image_shape


class DoublingGenerator(nn.Module, ABC):
    """Makes maps of latents: a linear layer, a convolution between two doublings, an ending.

    BatchNorms use the statistics of the batch throughout. Where a side is not divisible by four,
    larger maps are made and cropped.

    Args:
        latent_dim: Length of a latent.
        shape: (C, H, W) of an image.

    Attributes:
        widths: Channels of the maps at a quarter and at half of the image's size.
    """

    widths: ClassVar[tuple[int, int]]

    def __init__(self, latent_dim: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = shape
        self.size = (height, width)
        coarse = (math.ceil(height / 4), math.ceil(width / 4))
        first, second = self.widths
        self.project = nn.Linear(latent_dim, first * math.prod(coarse))
        self.maps = nn.Sequential(
            nn.Unflatten(1, (first, *coarse)),
            nn.BatchNorm2d(first, track_running_stats=False),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(first, second, 3, padding=1),
            nn.BatchNorm2d(second, track_running_stats=False),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            *self.ending(channels),
        )

    @abstractmethod
    def ending(self, channels: int) -> Sequence[nn.Module]:
        """Return what follows the second doubling, down to the channels of an image."""

    def forward(self, latents: Tensor) -> Tensor:
        """Return maps (N, C, H, W) of ``latents`` (N, latent_dim)."""
        height, width = self.size
        maps: Tensor = self.maps(self.project(latents))[..., :height, :width]
        return maps


class LatentGenerator(DoublingGenerator):
    """Makes images, whose channels a BatchNorm without parameters ends.

    Source: GENIE-D (Jeon et al., CVPR 2023), released code.
    """

    widths = (128, 64)

    def __init__(self, latent_dim: int, shape: tuple[int, int, int]) -> None:
        super().__init__(latent_dim, shape)
        self.normalize = nn.BatchNorm2d(shape[0], affine=False, track_running_stats=False)

    def ending(self, channels: int) -> Sequence[nn.Module]:
        """Return a convolution and a tanh."""
        return nn.Conv2d(self.widths[1], channels, 3, padding=1), nn.Tanh()

    def forward(self, latents: Tensor) -> Tensor:
        """Return images (N, C, H, W) of ``latents`` (N, latent_dim)."""
        images: Tensor = self.normalize(super().forward(latents))
        return images

    def draw_afresh(self) -> None:
        """Draw all weights as they were first drawn."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.BatchNorm2d):
                module.reset_parameters()


@part("source", "latent_bank")
class LatentBank(ImageBank):
    """A bank of images that a small generator makes of latents, both trained (GENIE-D).

    Each batch has latents and a generator of its own, which are thrown away when it is finished;
    its images are those of the last step. They have no labels.

    Source: Jeon et al., CVPR 2023, released code: 1,024 images in batches of 128, latents of 256
    numbers, 4,000 iterations; Adam at 0.1 for the latents, reduced on plateaus, and at 0.01 for
    the generator, times 0.95 every 100 iterations.
    """

    size: int = 1024
    """Images in the bank."""
    batch_size: int = 128
    """Images that are made together, by one generator."""
    iterations: int = 4000
    """Optimizer steps that each batch of images gets."""
    lr: float = 0.1
    """Learning rate of Adam for the latents."""
    patience: int = 100
    """Steps without a lower loss after which that rate falls."""
    latent_dim: int = 256
    """Length of a latent."""
    generator_lr: float = 0.01
    """Learning rate of Adam for the generator."""
    generator_decay: float = 0.95
    """What that rate is multiplied by."""
    generator_period: int = 100
    """Steps between two such falls."""

    label_kind = "none"
    # The labels in a file of this kind mean nothing.
    file_kind = "latent-bank"

    latents: ClassVar[nn.Parameter]

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("start", self.start, ("white",))
        require_range("latent_dim", self.latent_dim, 1)
        require_range("generator_lr", self.generator_lr, 0, MAX_RATE, open_minimum=True)
        require_range("generator_decay", self.generator_decay, 0, 1, open_minimum=True)
        require_range("generator_period", self.generator_period, 1)

    def unused(self) -> Collection[str]:
        """Return the start of pictures, too: latents are made of white noise alone."""
        return ("start", *super().unused())

    def build(self, site: Site) -> None:
        """Draw the first latents and the first generator, or read a saved bank.

        Raises:
            ConfigurationError: as :meth:`ImageBank.build`.
            DataError: likewise.
        """
        super().build(site)
        # The images are no parameters here: what is proposed is kept beside the buffers.
        del self.active
        self.register_buffer("active", torch.zeros(self.batch_size, *site.pretrained.input_shape))
        self.active_labels.zero_()
        latents = torch.randn(self.batch_size, self.latent_dim)
        self.register_parameter("latents", nn.Parameter(latents))
        shape = image_shape(site.pretrained, f"{site.key}={self.kind}")
        self.generator = LatentGenerator(self.latent_dim, shape)

    def propose(self) -> Batch:
        """Return images (B, C, H, W), differentiable in latents and generator."""
        images = self.generator(self.latents)
        self.active.copy_(images.detach())
        return Batch(self.site.pretrained.inputs_of(images))

    @torch.no_grad()
    def part_ways(self) -> None:
        """Draw latents and generator afresh, from this rank's streams."""
        self.latents.normal_()
        self.generator.draw_afresh()

    def own_state(self) -> dict[str, Any]:
        """Return the latents and the generator, too."""
        trained = {"latents": self.latents.detach().cpu()}
        weights = {name: value.detach().cpu() for name, value in self.generator.named_parameters()}
        return {**super().own_state(), **trained, "generator": weights}

    @torch.no_grad()
    def set_own_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`own_state` returned."""
        super().set_own_state(state)
        self.latents.copy_(state["latents"])
        self.generator.load_state_dict(state["generator"])

    def optimizers(self) -> Mapping[str, Optimizer]:
        """Return Adam over the latents and Adam over the generator."""
        return {
            "adam": torch.optim.Adam([self.latents], lr=self.lr),
            "generator": torch.optim.Adam(self.generator.parameters(), lr=self.generator_lr),
        }

    def improved(self, loss: float, optimizers: Mapping[str, Optimizer]) -> Batch | None:
        """Move both rates, and begin anew when the batch had its steps.

        Raises:
            FloatingPointError: the batch had its steps and is NaN or infinite.
        """
        finished = super().improved(loss, optimizers)
        optimizer = optimizers["generator"]
        if finished is not None:
            optimizer.state.clear()
        falls = self.iteration // self.generator_period
        for group in optimizer.param_groups:
            group["lr"] = self.generator_lr * self.generator_decay**falls
        return finished

    @torch.no_grad()
    def _start_fresh_batch(self, optimizer: Optimizer) -> None:
        self.part_ways()
        self.latents.grad = None
        self.iteration = 0
        self._begin_plateau(optimizer)
