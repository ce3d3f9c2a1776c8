"""MobileNetV1 at a quarter of its width (Howard et al., 2017), with the names of a public file.

The network of ``mobilenetv1_x0.25.pth.tar``, which Pytorch_Retinaface publishes, as a user would
hand in theirs: ``model=own model.factory=experiments.mobilenetv1:build`` in a checkout.
"""

from __future__ import annotations

from torch import Tensor, nn

STAGES = (
    ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1)),
    ((128, 2), *(((128, 1),) * 5)),
    ((256, 2), (256, 1)),
)
"""Channels and stride of each separable block."""
STEM = 8


def separable(channels: int, width: int, stride: int) -> nn.Sequential:
    """A depthwise convolution and a pointwise one to ``width`` channels."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


class MobileNetV1(nn.Module):
    """0.47 M parameters for 1,000 classes; logits (N, classes) of images (N, 3, H, W)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        stem = nn.Sequential(
            nn.Conv2d(3, STEM, 3, 2, 1, bias=False), nn.BatchNorm2d(STEM), nn.ReLU(inplace=True)
        )
        channels = STEM
        for number, blocks in enumerate(STAGES, start=1):
            stage = [stem] if number == 1 else []
            for width, stride in blocks:
                stage.append(separable(channels, width, stride))
                channels = width
            self.add_module(f"stage{number}", nn.Sequential(*stage))
        self.avg = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) of normalized images (N, 3, H, W)."""
        features = self.stage3(self.stage2(self.stage1(images)))
        logits: Tensor = self.fc(self.avg(features).flatten(1))
        return logits


def build(num_classes: int = 1000) -> MobileNetV1:
    """The function that ``model.factory`` names."""
    return MobileNetV1(num_classes)
