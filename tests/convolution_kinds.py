"""One tiny classifier of images for each kind of convolution; random weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

CLASSES = 5
SHAPE = (2, 8, 8)


class Values(nn.Module):
    """Images (N, C, H, W) as values of one, two or three dimensions.

    Args:
        size: Of what the layers take in, (C, ...), as many numbers as in an image.
        layers: In order.
        channels: That they put out.
    """

    def __init__(self, size: tuple[int, ...], layers: list[nn.Module], channels: int) -> None:
        super().__init__()
        self.size = size
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        values = self.layers(images.reshape(-1, *self.size))
        return self.head(values.flatten(2).mean(2))


class Shuffled(nn.Module):
    """Channels in two groups, dealt out anew, as in ShuffleNet."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


ONE, TWO, THREE = (2, 64), SHAPE, (2, 4, 4, 4)


def _one() -> list[nn.Module]:
    first = [nn.Conv1d(2, 8, 5, stride=2, padding=2, bias=False), nn.BatchNorm1d(8), nn.ReLU()]
    return [*first, nn.Conv1d(8, 6, 3, groups=2, dilation=2), nn.ReLU(), nn.MaxPool1d(2)]


def _three() -> list[nn.Module]:
    first = [nn.Conv3d(2, 8, 3, padding=1, bias=False), nn.BatchNorm3d(8), nn.ReLU()]
    return [*first, nn.Conv3d(8, 6, 3, groups=2), nn.ReLU(), nn.MaxPool3d(2)]


def _grouped() -> list[nn.Module]:
    first = [nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return [*first, nn.Conv2d(8, 6, 3, groups=2), nn.BatchNorm2d(6), nn.ReLU()]


def _depthwise() -> list[nn.Module]:
    first = [nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 12, 3, groups=6, bias=False)]
    return [*first, nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 6, 1), nn.BatchNorm2d(6)]


def _dilated() -> list[nn.Module]:
    first = [nn.Conv2d(2, 8, 3, dilation=2, padding=2), nn.BatchNorm2d(8), nn.ReLU()]
    return [*first, nn.Conv2d(8, 6, 3, dilation=(1, 2), padding="same"), nn.ReLU()]


def _shuffled(layer: nn.Module) -> list[nn.Module]:
    first = [nn.Conv2d(2, 8, 1, groups=2), nn.BatchNorm2d(8), nn.ReLU(), layer]
    return [*first, nn.Conv2d(8, 6, 3, groups=2), nn.ReLU()]


def _transposed(dimensions: int, groups: int) -> list[nn.Module]:
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dimensions - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dimensions - 1]
    first = [kind(2, 8, 3, stride=2, padding=1, output_padding=1, bias=False), norm(8), nn.ReLU()]
    return [*first, kind(8, 6, 2, groups=groups, dilation=2), nn.ReLU()]


KINDS: dict[str, Callable[[], nn.Module]] = {
    "conv1d": lambda: Values(ONE, _one(), 6),
    "conv3d": lambda: Values(THREE, _three(), 6),
    "grouped": lambda: Values(TWO, _grouped(), 6),
    "depthwise": lambda: Values(TWO, _depthwise(), 6),
    "dilated": lambda: Values(TWO, _dilated(), 6),
    "channel_shuffle": lambda: Values(TWO, _shuffled(nn.ChannelShuffle(2)), 6),
    "shuffle_by_views": lambda: Values(TWO, _shuffled(Shuffled()), 6),
    "transposed1d": lambda: Values(ONE, _transposed(1, 1), 6),
    "transposed2d": lambda: Values(TWO, _transposed(2, 1), 6),
    "transposed2d_grouped": lambda: Values(TWO, _transposed(2, 2), 6),
    "transposed3d_grouped": lambda: Values(THREE, _transposed(3, 2), 6),
}


@torch.no_grad()
def network_of(kind: str) -> nn.Module:
    """A network whose BatchNorms are unlike the identity, in evaluation mode."""
    torch.manual_seed(0)
    network = KINDS[kind]()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 2)
            layer.weight.uniform_(0.5, 1.5)
            layer.weight[::5] *= -1
            layer.bias.normal_(0, 0.2)
    return network.eval()
