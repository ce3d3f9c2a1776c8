"""One small network a family, with all that is peculiar to it; random weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchvision.models import (
    DenseNet,
    EfficientNet,
    MNASNet,
    MobileNetV2,
    MobileNetV3,
    RegNet,
    ResNet,
    ShuffleNetV2,
)
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import Bottleneck

from hast_lightning.models.resnet import CifarResNet
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.fake_quant import (
    ActivationMode,
    freeze_ranges,
    set_activation_mode,
)
from hast_lightning.quantization.settings import QuantizerConfig

CLASSES = 10
SIZE = 32
SHAPE = (3, SIZE, SIZE)


def _mobilenet_v3() -> nn.Module:
    block = partial(InvertedResidualConfig, dilation=1, width_mult=1.0)
    settings = [block(16, 3, 16, 16, True, "RE", 2), block(16, 5, 32, 24, True, "HS", 2)]
    return MobileNetV3(settings, last_channel=32, num_classes=CLASSES)


def _efficientnet() -> nn.Module:
    block = partial(MBConvConfig, width_mult=1.0, depth_mult=1.0)
    settings = [block(1, 3, 1, 16, 8, 1), block(4, 5, 2, 8, 16, 2)]
    return EfficientNet(settings, dropout=0.2, last_channel=32, num_classes=CLASSES)


def _mnasnet() -> nn.Module:
    network = MNASNet(0.1, CLASSES)
    for index, layer in enumerate(network.layers):
        if isinstance(layer, nn.Sequential):
            # One block instead of several: the depth is no option of torchvision's.
            network.layers[index] = layer[:1]
    return network


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "cifar_resnet": lambda: CifarResNet(8, CLASSES, width=4),
    "resnet": lambda: ResNet(Bottleneck, [1, 1, 1, 1], CLASSES, width_per_group=8),
    "mobilenet_v2": lambda: MobileNetV2(
        CLASSES, inverted_residual_setting=[[1, 8, 1, 1], [6, 8, 2, 2]], width_mult=0.5
    ),
    "mobilenet_v3": _mobilenet_v3,
    "regnet": lambda: RegNet(
        BlockParams.from_init_params(
            depth=3, w_0=8, w_a=8.0, w_m=2.0, group_width=8, se_ratio=0.25
        ),
        num_classes=CLASSES,
        stem_width=8,
    ),
    "shufflenet_v2": lambda: ShuffleNetV2([2, 1, 1], [8, 16, 24, 32, 32], num_classes=CLASSES),
    "efficientnet": _efficientnet,
    "densenet": lambda: DenseNet(4, (2, 2), 8, num_classes=CLASSES),
    "mnasnet": _mnasnet,
}


@torch.no_grad()
def as_if_trained(network: nn.Module) -> nn.Module:
    """BatchNorms unlike the identity, some of whose channels are turned round."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            layer.weight.uniform_(0.5, 1.5)
            layer.weight[::5] *= -1
            layer.bias.normal_(0, 0.2)
    return network.eval()


def family(name: str, seed: int = 0) -> nn.Module:
    """The network of a family with weights that only depend on the seed."""
    torch.manual_seed(seed)
    return as_if_trained(FAMILIES[name]())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def calibrated(
    network: nn.Module,
    weight_bits: int,
    activation_bits: int | None = None,
    images: Tensor | None = None,
    **settings: Any,
) -> fx.GraphModule:
    """A student whose ranges are those of ``images``; of one number of bits both have it."""
    bits = {"weight_bits": weight_bits, "activation_bits": activation_bits or weight_bits}
    student = convert(network, QuantizerConfig(**bits, **settings))
    set_activation_mode(student, ActivationMode.OBSERVE)
    student(noise(8, *SHAPE, seed=1) if images is None else images)
    freeze_ranges(student)
    return student
