"""From a name to a pretrained network and what it expects as input."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from safetensors import safe_open
from torch import nn
from torchvision import models as torchvision_models

from hast_lightning.config import ModelConfig
from hast_lightning.errors import ModelError
from hast_lightning.models.checkpoints import checksum, load_weights
from hast_lightning.models.resnet import CifarResNet

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET_SIZE = 224
CIFAR_SIZE = 32
DIGITS_SIZE = 8
DIGITS_WEIGHTS = "weights/digits_resnet.safetensors"
SUGGESTIONS = 5


@dataclass(frozen=True)
class PretrainedNetwork:
    """A full-precision network, in evaluation mode, and the input that it expects.

    Attributes:
        network: The network itself.
        name: Its name in reports.
        input_shape: (C, H, W).
        num_classes: Size of the output.
        mean: Per channel, what pixels in [0, 1] are normalized with.
        std: Per channel.
        checksum: SHA-256 of the state dict.
    """

    network: nn.Module
    name: str
    input_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    checksum: str


def load(config: ModelConfig) -> PretrainedNetwork:
    """The network that the ``model`` group describes.

    Raises:
        ModelError: it is unknown, or its weights are missing or do not fit.
    """
    loaders = {"digits": _digits, "cifar_resnet": _cifar_resnet, "torchvision": _torchvision}
    return loaders[config.provider](config)


def _digits(config: ModelConfig) -> PretrainedNetwork:
    with resources.as_file(resources.files(__package__) / DIGITS_WEIGHTS) as path:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        network = CifarResNet(int(metadata["depth"]), 10, 1, int(metadata["width"]))
        _load(network, config, path)
    return _describe(network, config, (1, DIGITS_SIZE, DIGITS_SIZE), 10, (0.5,), (0.5,))


def _cifar_resnet(config: ModelConfig) -> PretrainedNetwork:
    size, classes = config.input_size or CIFAR_SIZE, config.num_classes or 10
    network = CifarResNet(config.depth or 0, classes)
    _load(network, config, None)
    return _describe(network, config, (3, size, size), classes, IMAGENET_MEAN, IMAGENET_STD)


def _load(network: nn.Module, config: ModelConfig, default: Path | None) -> None:
    path = config.checkpoint or default
    if config.pretrained and path is not None:
        load_weights(network, path)


def _torchvision(config: ModelConfig) -> PretrainedNetwork:
    names = torchvision_models.list_models(module=torchvision_models)
    if config.name not in names:
        close = difflib.get_close_matches(config.name, names, SUGGESTIONS) or names[:SUGGESTIONS]
        raise ModelError(
            f"model.name={config.name!r} is no classification network of torchvision; did you "
            f"mean: {', '.join(close)}"
        )
    weights = torchvision_models.get_model_weights(config.name).DEFAULT
    classes = config.num_classes or len(weights.meta["categories"])
    network = torchvision_models.get_model(config.name, weights=None, num_classes=classes)
    if config.checkpoint is not None:
        _load(network, config, None)
    elif config.pretrained:
        network.load_state_dict(_download(weights))
    preset = weights.transforms()
    size = config.input_size or preset.crop_size[0]
    return _describe(network, config, (3, size, size), classes, preset.mean, preset.std)


def _download(weights: Any) -> dict[str, torch.Tensor]:
    """The published weights, from torch's cache or from the network."""
    try:
        state: dict[str, torch.Tensor] = weights.get_state_dict(
            progress=False, check_hash=True, weights_only=True
        )
        return state
    except (URLError, OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise ModelError(
            f"the weights {weights} are neither at {folder / weights.url.rsplit('/', 1)[-1]} nor "
            f"can they be downloaded ({error}): put the file there, set model.checkpoint, or "
            "set model.pretrained=false"
        ) from error


def _describe(
    network: nn.Module,
    config: ModelConfig,
    input_shape: tuple[int, int, int],
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> PretrainedNetwork:
    mean, std = config.mean or mean, config.std or std
    if len(mean) != input_shape[0] or len(std) != input_shape[0]:
        raise ModelError(
            f"model.mean and model.std have {len(mean)} and {len(std)} values, the network's "
            f"input {input_shape[0]} channels"
        )
    return PretrainedNetwork(
        network=network.eval(),
        name=config.name,
        input_shape=input_shape,
        num_classes=num_classes,
        mean=tuple(mean),
        std=tuple(std),
        checksum=checksum(network),
    )
