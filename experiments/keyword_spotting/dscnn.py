"""The DS-CNN of MLPerf Tiny's keyword spotting (mlcommons/tiny), without its weights."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

FRAMES, COEFFICIENTS, CLASSES = 49, 10, 12
CHANNELS = 64
EPS = 1e-3
"""Of every BatchNorm: TensorFlow's."""
PADDING = (1, 1, 4, 5)
"""Left, right, top, bottom: TensorFlow's "same" of a 10x4 window of stride 2 on 49x10."""


class Separable(nn.Module):
    """A depthwise and a pointwise convolution, each with BatchNorm and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.depthwise_bn = nn.BatchNorm2d(channels, EPS)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.pointwise_bn = nn.BatchNorm2d(channels, EPS)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, channels, H, W) to the same shape."""
        maps = F.relu(self.depthwise_bn(self.depthwise(maps)))
        return F.relu(self.pointwise_bn(self.pointwise(maps)))


class DSCNN(nn.Module):
    """A convolution, four separable ones, an average and a linear layer; 23,756 weights."""

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, CHANNELS, (10, 4), stride=2)
        self.bn = nn.BatchNorm2d(CHANNELS, EPS)
        self.blocks = nn.Sequential(*[Separable(CHANNELS) for _ in range(4)])
        # The first 24 of the 25 rows, as in TensorFlow.
        self.pool = nn.AvgPool2d((24, 5))
        self.fc = nn.Linear(CHANNELS, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Map MFCC (N, 1, 49 frames, 10 coefficients) to logits (N, classes)."""
        maps = F.relu(self.bn(self.conv(F.pad(features, PADDING))))
        logits: Tensor = self.fc(self.pool(self.blocks(maps)).flatten(1))
        return logits
