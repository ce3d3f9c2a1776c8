"""The networks of this package: the bundled one for digits, and CIFAR's residual networks."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from hast_lightning.config import ModelConfig
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ModelError
from hast_lightning.models.checkpoints import load_weights, read_metadata
from hast_lightning.models.pretrained import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    describe,
)
from hast_lightning.models.resnet import CifarResNet

CIFAR_SIZE, CIFAR_CLASSES = (32, 32), 10
DIGITS_SIZE, DIGITS_CLASSES = (8, 8), 10
DIGITS_MEAN, DIGITS_STD = (0.5,), (0.5,)
DIGITS_WEIGHTS = "weights/digits_resnet.safetensors"


def load_digits(config: ModelConfig) -> PretrainedNetwork:
    """Load the bundled network, or one of another size that its training script made.

    Raises:
        ModelError: the weights are missing, unsafe or do not fit.
    """
    size, classes = config.size or DIGITS_SIZE, config.num_classes or DIGITS_CLASSES
    with resources.as_file(resources.files("hast_lightning.models") / DIGITS_WEIGHTS) as bundled:
        path = Path(config.checkpoint or bundled)
        metadata = {**read_metadata(bundled), **read_metadata(path)}
        depth, width = (_integer(metadata, key, path) for key in ("depth", "width"))
        network = CifarResNet(depth, classes, in_channels=1, width=width)
        if config.pretrained:
            load_weights(network, path, key=config.checkpoint_key)
    names = [str(digit) for digit in range(DIGITS_CLASSES)]
    shape = (1, *size)
    return describe(network, config, shape, DIGITS_MEAN, DIGITS_STD, class_names=names)


def _integer(metadata: dict[str, str], key: str, path: Path) -> int:
    if not metadata[key].isdecimal():
        raise ModelError(f"the weights file {path} says {key}={metadata[key]!r}, not a number")
    return int(metadata[key])


def load_cifar_resnet(config: ModelConfig) -> PretrainedNetwork:
    """Build a residual network for CIFAR of the depth in ``config``.

    Raises:
        ModelError: the weights are missing, unsafe or do not fit.
    """
    size, classes = config.size or CIFAR_SIZE, config.num_classes or CIFAR_CLASSES
    network = CifarResNet(config.depth or 0, classes)
    if config.pretrained and config.checkpoint is not None:
        load_weights(network, config.checkpoint, key=config.checkpoint_key)
    return describe(network, config, (3, *size), IMAGENET_MEAN, IMAGENET_STD)
