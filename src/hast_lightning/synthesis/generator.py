"""The conditional generator network of GDFQ (Xu et al., ECCV 2020)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hast_lightning.config import GeneratorConfig
from hast_lightning.errors import ConfigurationError, DataError
from hast_lightning.synthesis.source import read_tensors, write_tensors

FILE_KIND = "generator"
WIDTHS = (128, 128, 64)
"""Channels of the feature maps at a quarter, half and the whole of the image's size."""
HELD_OUT_CHUNK = 32
HELD_OUT_SEED = 20230326
"""Any fixed number; training draws from another generator, so images do not repeat."""


class ConditionalBatchNorm2d(nn.Module):
    """BatchNorm whose scale and shift depend on the label (de Vries et al., 2017)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.normalize = nn.BatchNorm2d(channels, affine=False)
        self.scale = nn.Embedding(num_classes, channels)
        self.shift = nn.Embedding(num_classes, channels)
        # Classes start slightly apart, so that the label matters from the first step.
        nn.init.normal_(self.scale.weight, mean=1.0, std=0.02)
        nn.init.zeros_(self.shift.weight)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Normalize ``features`` (N, C, H, W) by the statistics of the batch."""
        scale = self.scale(labels)[:, :, None, None]
        shift = self.shift(labels)[:, :, None, None]
        normalized: Tensor = self.normalize(features)
        return torch.addcmul(shift, normalized, scale)


class PlainBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that is given the labels, too, and ignores them."""

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Normalize ``features`` (N, C, H, W)."""
        return super().forward(features)


class ConditionalGenerator(nn.Module):
    """Images from noise and labels, a :class:`SampleSource`.

    Noise ``z ~ N(0, I)`` is projected to 128 maps at a quarter of the image's
    size, twice doubled in size and convolved; tanh and a BatchNorm without
    affine parameters give the output unit variance, as normalized pixels have.
    The label enters by multiplying ``z`` with a learned embedding (GDFQ on
    CIFAR), or through class-conditional BatchNorm (GDFQ on ImageNet).

    Args:
        config: latent size, conditioning, batch size, Adam's settings.
        input_shape: channels, height and width of an image.
        num_classes: labels are drawn from ``range(num_classes)``.

    Raises:
        ConfigurationError: height or width is not divisible by four.
    """

    steps_to_fill: int | None = None
    steps_to_start = 0
    shared = True

    def __init__(
        self, config: GeneratorConfig, input_shape: tuple[int, int, int], num_classes: int
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        if height % 4 or width % 4:
            raise ConfigurationError(
                f"model.input_size={height}x{width}: the generator makes only images whose "
                "height and width are divisible by 4"
            )
        self.config = config
        self.input_shape = input_shape
        self.num_classes = num_classes
        self.coarse_size = (height // 4, width // 4)
        self.conditional = config.conditioning == "batch_norm"
        if not self.conditional:
            self.embedding = nn.Embedding(num_classes, config.latent_dim)
        self.project = nn.Linear(config.latent_dim, WIDTHS[0] * height * width // 16)
        self.norm0 = self._norm(WIDTHS[0])
        self.conv1 = nn.Conv2d(WIDTHS[0], WIDTHS[1], 3, padding=1)
        self.norm1 = self._norm(WIDTHS[1])
        self.conv2 = nn.Conv2d(WIDTHS[1], WIDTHS[2], 3, padding=1)
        self.norm2 = self._norm(WIDTHS[2])
        self.conv3 = nn.Conv2d(WIDTHS[2], channels, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(channels, affine=False)
        self.enlarge = nn.Upsample(scale_factor=2)
        self.activation = nn.LeakyReLU(0.2, inplace=True)

    def _norm(self, channels: int) -> nn.Module:
        if self.conditional:
            return ConditionalBatchNorm2d(channels, self.num_classes)
        return PlainBatchNorm2d(channels)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Return images (N, C, H, W) of ``noise`` (N, latent_dim) and ``labels`` (N,)."""
        if not self.conditional:
            noise = noise * self.embedding(labels)
        maps = self.project(noise).unflatten(1, (WIDTHS[0], *self.coarse_size))
        maps = self.enlarge(self.norm0(maps, labels))
        maps = self.activation(self.norm1(self.conv1(maps), labels))
        maps = self.enlarge(maps)
        maps = self.activation(self.norm2(self.conv2(maps), labels))
        images: Tensor = self.norm3(torch.tanh(self.conv3(maps)))
        return images

    def _draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Return images of fresh noise and uniform labels."""
        device = self.project.weight.device
        noise = torch.randn(count, self.config.latent_dim, device=device)
        labels = torch.randint(self.num_classes, (count,), device=device)
        return self(noise, labels), labels

    def propose(self) -> tuple[Tensor, Tensor]:
        """Return a batch to improve, differentiable in the network's parameters."""
        return self._draw(self.config.batch_size)

    def part_ways(self) -> None:
        """Do nothing: all ranks have one network, and noise comes from their own streams."""

    def own_state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def set_own_state(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Return Adam over the network's parameters."""
        betas = (self.config.beta1, self.config.beta2)
        return torch.optim.Adam(self.parameters(), lr=self.config.lr, betas=betas)

    def improved(self, loss: float, optimizer: torch.optim.Optimizer) -> None:
        """Do nothing: the generator keeps its learning rate, and no images."""

    @torch.no_grad()
    def sample(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return fresh images (batch_size, C, H, W) and their labels.

        They are normalized by their own statistics, as while training, but leave no trace in
        the running ones: these make the held-out images, which must not drift while only the
        student trains.
        """
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.track_running_stats = False
        try:
            return self._draw(batch_size)
        finally:
            for norm in norms:
                norm.track_running_stats = True

    @torch.no_grad()
    def held_out(self, count: int) -> tuple[Tensor, Tensor]:
        """Return images of fixed noise and labels, made with the running statistics.

        So they depend on the weights and ``count`` alone, and asking for them
        leaves no trace: neither in running statistics nor in the random numbers
        of the training. Labels go through the classes in turn.
        """
        seeded = torch.Generator().manual_seed(HELD_OUT_SEED)
        device = self.project.weight.device
        labels = torch.arange(count) % self.num_classes
        noise = torch.randn(count, self.config.latent_dim, generator=seeded)
        labels, noise = labels.to(device), noise.to(device)
        training = self.training
        self.eval()
        try:
            # In chunks: at 224 pixels the inner activations of one image take 40 MB.
            parts = (torch.split(tensor, HELD_OUT_CHUNK) for tensor in (noise, labels))
            return torch.cat([self(*chunk) for chunk in zip(*parts, strict=True)]), labels
        finally:
            self.train(training)

    def preview(self, count: int) -> tuple[Tensor, Tensor]:
        """Return images of the noise and labels that :meth:`held_out` begins with."""
        return self.held_out(count)

    def _shape_header(self) -> dict[str, str]:
        """What must agree between a file and the network that it is loaded into."""
        return {
            "conditioning": self.config.conditioning,
            "latent_dim": str(self.config.latent_dim),
            "num_classes": str(self.num_classes),
            "input_shape": "x".join(map(str, self.input_shape)),
        }

    def save(self, path: str | Path) -> None:
        """Write the weights to a safetensors file."""
        tensors = {name: value.contiguous() for name, value in self.state_dict().items()}
        write_tensors(path, FILE_KIND, tensors, self._shape_header())

    @classmethod
    def load(
        cls,
        path: str | Path,
        config: GeneratorConfig,
        input_shape: tuple[int, int, int],
        num_classes: int,
    ) -> ConditionalGenerator:
        """Read a saved generator.

        Raises:
            DataError: the file is missing, unreadable, or of another network.
        """
        tensors, header = read_tensors(path, FILE_KIND)
        generator = cls(config, input_shape, num_classes)
        for key, expected in generator._shape_header().items():
            if header.get(key) != expected:
                raise DataError(
                    f"synthesis.load={path}: {key} is {header.get(key)}, expected {expected}"
                )
        if not all(bool(value.isfinite().all()) for value in tensors.values()):
            raise DataError(f"synthesis.load={path}: some weights are NaN or infinite")
        try:
            generator.load_state_dict(tensors)
        except RuntimeError as error:
            raise DataError(f"synthesis.load={path}: the weights do not fit the network") from error
        return generator
