"""The small residual networks for CIFAR of He et al. (2016), with parameter-free shortcuts.

Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2: a 3x3 convolution, three
stages of ``(depth - 2) / 6`` basic blocks with ``w``, ``2w`` and ``4w`` channels, global average
pooling and one linear layer.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional as F

from hast_lightning.errors import ModelError


class SubsampledIdentity(nn.Module):
    """Shortcut without parameters: every second pixel, new channels zero (option A).

    He et al. 2016, section 4.1. Half of the new channels go before and half after the old ones,
    so that a doubling pads a quarter of the new width on each side.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, at least ``in_channels``.
        stride: distance in pixels between the kept rows and columns.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, ceil(H/s), ceil(W/s))``."""
        kept = features[:, :, :: self.stride, :: self.stride]
        return F.pad(kept, (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, added to the shortcut (He et al. 2016, figure 2).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: stride of the first convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        # One activation module a use, so that a quantizer can give each its own range.
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = SubsampledIdentity(in_channels, out_channels, stride)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, ceil(H/s), ceil(W/s))``."""
        body = self.relu1(self.bn1(self.conv1(features)))
        body = self.bn2(self.conv2(body))
        output: Tensor = self.relu2(body + self.shortcut(features))
        return output


class CifarResNet(nn.Module):
    """The residual network for small images of He et al. 2016, section 4.2.

    The names of the state dict are those of the widely used public CIFAR-10 checkpoints:
    ``conv1, bn1, layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}, linear``.

    Args:
        depth: ``6 n + 2`` for n blocks a stage: 8, 14, 20, 32, 44, 56, 110, ...
        num_classes: length of the output.
        in_channels: channels of the input images.
        width: channels of the first stage; the others have two and four times as many.

    Raises:
        ModelError: an impossible depth, or a width, channel or class count below one.
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ModelError(
                f"CifarResNet: depth={depth} is not possible; allowed: 6n + 2 (8, 14, 20, 32, ...)"
            )
        sizes = {"num_classes": num_classes, "in_channels": in_channels, "width": width}
        for key, value in sizes.items():
            if value < 1:
                raise ModelError(f"CifarResNet: {key}={value} is not possible; allowed: 1 or more")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(4 * width, num_classes)
        _initialize(self.modules())

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, in_channels, H, W)`` to logits ``(N, num_classes)``."""
        features = self.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        logits: Tensor = self.linear(self.pool(features).flatten(1))
        return logits


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    """Basic blocks of which the first changes the resolution and the width."""
    first = BasicBlock(in_channels, out_channels, stride)
    others = [BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *others)


def _initialize(modules: Iterator[nn.Module]) -> None:
    """He initialization (He et al. 2015) of the convolutions and the linear layer."""
    for module in modules:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
