"""The conditional generator network of GDFQ (Xu et al., ECCV 2020)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from hast_lightning.core.batch import Batch
from hast_lightning.core.checks import MAX_RATE, expand_home, require_choice, require_range
from hast_lightning.core.network import FEATURES
from hast_lightning.core.part import part
from hast_lightning.core.source import Site, TrainedSource
from hast_lightning.errors import DataError
from hast_lightning.files.tensors import read_tensors, write_tensors
from hast_lightning.sources.suitability import image_shape, refuse_maps

CONDITIONINGS = ("embedding", "batch_norm")
FILE_KIND = "generator"
WIDTHS = (128, 128, 64)
"""Channels of the feature maps at a quarter, half and the whole of the image's size."""
HELD_OUT_CHUNK = 32


def with_one_hot(batch: Batch, classes: int) -> Batch:
    """Return a batch of hard labels with the same labels as soft ones, (N, classes)."""
    assert batch.targets is not None
    return batch._replace(targets=F.one_hot(batch.targets, classes).float())


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
        """Normalize ``features`` (N, C, H, W) by the statistics of the batch.

        Soft ``labels`` (N, classes) mix the scales and shifts of the classes.
        """
        scale, shift = (_looked_up(table, labels) for table in (self.scale, self.shift))
        normalized: Tensor = self.normalize(features)
        return torch.addcmul(shift[:, :, None, None], normalized, scale[:, :, None, None])


def _looked_up(table: nn.Embedding, labels: Tensor) -> Tensor:
    """Return the rows of hard labels (N,), or the mixtures of rows that soft ones name."""
    rows: Tensor = table(labels) if labels.dim() == 1 else labels @ table.weight
    return rows


class PlainBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that is given the labels, too, and ignores them."""

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Normalize ``features`` (N, C, H, W)."""
        return super().forward(features)


class PerCoefficient(nn.Module):
    """A learned scale and shift of each coefficient, in standard deviations; at first none."""

    def __init__(self, channels: int, coefficients: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, coefficients))
        self.shift = nn.Parameter(torch.zeros(channels, 1, coefficients))

    def forward(self, features: Tensor) -> Tensor:
        """Scale and shift ``features`` (N, C, frames, coefficients)."""
        return torch.addcmul(self.shift, features, self.scale)


@part("source", "generator")
class ConditionalGenerator(TrainedSource):
    """The conditional generator network of GDFQ, which makes images from noise and labels.

    Noise ``z ~ N(0, I)`` is projected to 128 maps at a quarter of the image's size, twice doubled
    in size and convolved; tanh and a BatchNorm without affine parameters give the output unit
    variance, as normalized pixels have. Where a side is not divisible by four, larger maps are
    made and cropped before that BatchNorm. Of features each coefficient has a scale and a shift
    behind it, which are trained from what the network's BatchNorms say of its inputs. The label
    enters by multiplying ``z`` with a learned embedding (GDFQ on CIFAR), or through
    class-conditional BatchNorm (GDFQ on ImageNet).

    Source: Xu et al., ECCV 2020.
    """

    latent_dim: int = 100
    """Length of the noise vector that an image is made of."""
    conditioning: str = "embedding"
    """How the label enters: latent times ``embedding``, or class-conditional ``batch_norm``."""
    batch_size: int = 64
    """Images of a generator step."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    beta1: float = 0.5
    """Decay of Adam's mean of gradients."""
    beta2: float = 0.999
    """Decay of Adam's mean of squared gradients."""

    shared = True
    hands_on = True

    def __post_init__(self) -> None:
        self.load = expand_home(self.load)
        require_choice("conditioning", self.conditioning, CONDITIONINGS)
        require_range("latent_dim", self.latent_dim, 1)
        require_range("batch_size", self.batch_size, 1)
        require_range("lr", self.lr, 0, MAX_RATE, open_minimum=True)
        require_range("beta1", self.beta1, 0, 0.9999)
        require_range("beta2", self.beta2, 0, 0.9999)

    def build(self, site: Site) -> None:
        """Draw the weights, or read a saved generator.

        Raises:
            DataError: the file is missing, unreadable, or of another network.
        """
        super().build(site)
        self._make(site)
        if self.load is not None:
            self._read(self.load)

    def _make(self, site: Site) -> None:
        """Make all that a file holds."""
        channels, height, width = image_shape(site.pretrained, f"{site.key}={self.kind}")
        refuse_maps(site.pretrained, f"{site.key}={self.kind}")
        self.num_classes = site.pretrained.num_classes
        self.size = (height, width)
        self.coarse_size = (math.ceil(height / 4), math.ceil(width / 4))
        self.conditional = self.conditioning == "batch_norm"
        self.project = nn.Linear(self._embed(), WIDTHS[0] * math.prod(self.coarse_size))
        self.norm0 = self._norm(WIDTHS[0])
        self.conv1 = nn.Conv2d(WIDTHS[0], WIDTHS[1], 3, padding=1)
        self.norm1 = self._norm(WIDTHS[1])
        self.conv2 = nn.Conv2d(WIDTHS[1], WIDTHS[2], 3, padding=1)
        self.norm2 = self._norm(WIDTHS[2])
        self.conv3 = nn.Conv2d(WIDTHS[2], channels, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(channels, affine=False)
        # Left out for pictures: normalized pixels have no scale that could be learned.
        self.standard: nn.Module = nn.Identity()
        if site.pretrained.modality == FEATURES:
            self.standard = PerCoefficient(channels, width)
        self.enlarge = nn.Upsample(scale_factor=2)
        self.activation = nn.LeakyReLU(0.2, inplace=True)

    def _embed(self) -> int:
        """Make what comes before the projection, and return the width of what that takes in."""
        if not self.conditional:
            self.embedding = nn.Embedding(self.num_classes, self.latent_dim)
        return self.latent_dim

    def _norm(self, channels: int) -> nn.Module:
        if self.conditional:
            return ConditionalBatchNorm2d(channels, self.num_classes)
        return PlainBatchNorm2d(channels)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Return images (N, C, H, W) of ``noise`` (N, latent_dim) and ``labels`` (N,)."""
        if not self.conditional:
            noise = noise * self.embedding(labels)
        return self._images(noise, labels)

    def _images(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Return images (N, C, H, W) of what the projection takes in, (N, width)."""
        maps = self.project(latents).unflatten(1, (WIDTHS[0], *self.coarse_size))
        maps = self.enlarge(self.norm0(maps, labels))
        maps = self.activation(self.norm1(self.conv1(maps), labels))
        maps = self.enlarge(maps)
        maps = self.activation(self.norm2(self.conv2(maps), labels))
        height, width = self.size
        made = self.norm3(torch.tanh(self.conv3(maps))[..., :height, :width])
        return self.site.pretrained.inputs_of(self.standard(made))

    def _draw(self, count: int) -> Batch:
        """Return images of fresh noise and uniform labels."""
        device = self.project.weight.device
        noise = torch.randn(count, self.latent_dim, device=device)
        labels = torch.randint(self.num_classes, (count,), device=device)
        return Batch(self(noise, labels), labels)

    def propose(self) -> Batch:
        """Return a batch to improve, differentiable in the network's parameters."""
        return self._draw(self.batch_size)

    def optimizers(self) -> Mapping[str, Optimizer]:
        """Return Adam over the network's parameters."""
        betas = (self.beta1, self.beta2)
        return {"adam": torch.optim.Adam(self.parameters(), lr=self.lr, betas=betas)}

    @torch.no_grad()
    def sample(self, count: int) -> Batch:
        """Return fresh images (count, C, H, W) and their labels.

        They are normalized by their own statistics, as while training, but leave no trace in
        the running ones: these make the held-out images, which must not drift while only the
        student trains.
        """
        with self._untraced():
            return self._draw(count)

    @contextmanager
    def _untraced(self) -> Iterator[None]:
        """Let running statistics stay as they are."""
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.track_running_stats = False
        try:
            yield
        finally:
            for norm in norms:
                norm.track_running_stats = True

    @torch.no_grad()
    def of_seed(self, count: int, seed: int) -> Batch:
        """Return images of fixed noise and labels, made with the running statistics.

        So they depend on the weights, ``count`` and ``seed`` alone, and asking for them
        leaves no trace: neither in running statistics nor in the random numbers
        of the training. Labels go through the classes in turn.
        """
        seeded = torch.Generator().manual_seed(seed)
        device = self.project.weight.device
        labels = torch.arange(count) % self.num_classes
        noise = torch.randn(count, self.latent_dim, generator=seeded)
        labels, noise = labels.to(device), noise.to(device)
        training = self.training
        self.eval()
        try:
            # In chunks: at 224 pixels the inner activations of one image take 40 MB.
            parts = (torch.split(tensor, HELD_OUT_CHUNK) for tensor in (noise, labels))
            images = torch.cat([self(*chunk) for chunk in zip(*parts, strict=True)])
        finally:
            self.train(training)
        made = Batch(images, labels)
        return with_one_hot(made, self.num_classes) if self.label_kind == "soft" else made

    def _shape_header(self) -> dict[str, str]:
        """Return what must agree between a file and the network that it is loaded into."""
        return {
            "conditioning": self.conditioning,
            "latent_dim": str(self.latent_dim),
            "num_classes": str(self.num_classes),
            "input_shape": "x".join(map(str, self.site.pretrained.input_shape)),
        }

    def save(self, path: str | Path) -> None:
        """Write the weights to a safetensors file."""
        tensors = {name: value.contiguous() for name, value in self.state_dict().items()}
        write_tensors(path, FILE_KIND, tensors, self._shape_header())

    def _read(self, path: str) -> None:
        """Take the weights of a saved generator."""
        origin = f"{self.site.key}.load={path}"
        tensors, header = read_tensors(path, FILE_KIND, f"{self.site.key}.load")
        for key, expected in self._shape_header().items():
            if header.get(key) != expected:
                raise DataError(f"{origin}: {key} is {header.get(key)}, expected {expected}")
        if not all(bool(value.isfinite().all()) for value in tensors.values()):
            raise DataError(f"{origin}: some weights are NaN or infinite")
        try:
            self.load_state_dict(tensors)
        except RuntimeError as error:
            raise DataError(f"{origin}: the weights do not fit the network") from error
