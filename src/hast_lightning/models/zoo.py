"""From a name to a pretrained network and what it expects as input."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models as torchvision_models

from hast_lightning.config import ModelConfig
from hast_lightning.errors import ModelError
from hast_lightning.models.checkpoints import (
    checksum,
    load_weights,
    read_metadata,
    read_state_dict,
)
from hast_lightning.models.resnet import CifarResNet

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CIFAR_SIZE, CIFAR_CLASSES = 32, 10
DIGITS_SIZE, DIGITS_CLASSES = 8, 10
DIGITS_MEAN, DIGITS_STD = (0.5,), (0.5,)
DIGITS_WEIGHTS = "weights/digits_resnet.safetensors"
_SUGGESTIONS = 5


@dataclass(frozen=True)
class PretrainedNetwork:
    """A full-precision network in evaluation mode, and the input that it expects.

    Attributes:
        network: the network itself, in float32.
        name: its name in reports.
        input_shape: (channels, height, width).
        num_classes: length of the output.
        mean: per channel, what pixels in [0, 1] are normalized with.
        std: per channel.
        checksum: SHA-256 of the state dict, in hexadecimal.
        resize_ratio: a photograph's shorter side before the centre crop, as a multiple of the
            crop's side; 256 / 224 is the usual one (He et al., 2016).
    """

    network: nn.Module
    name: str
    input_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    checksum: str
    resize_ratio: float = 256 / 224


def load(config: ModelConfig) -> PretrainedNetwork:
    """The network that the ``model`` group describes.

    Raises:
        ModelError: it is unknown, or its weights are missing, unsafe, or do not fit.
    """
    loaders = {"digits": _digits, "cifar_resnet": _cifar_resnet, "torchvision": _torchvision}
    return loaders[config.provider](config)


def _digits(config: ModelConfig) -> PretrainedNetwork:
    """The bundled network, or one of another size that its training script made."""
    size, classes = config.input_size or DIGITS_SIZE, config.num_classes or DIGITS_CLASSES
    with resources.as_file(resources.files(__package__) / DIGITS_WEIGHTS) as bundled:
        path = Path(config.checkpoint or bundled)
        metadata = {**read_metadata(bundled), **read_metadata(path)}
        depth, width = (_integer(metadata, key, path) for key in ("depth", "width"))
        network = CifarResNet(depth, classes, in_channels=1, width=width)
        if config.pretrained:
            load_weights(network, path)
    return _describe(network, config, (1, size, size), classes, DIGITS_MEAN, DIGITS_STD)


def _integer(metadata: dict[str, str], key: str, path: Path) -> int:
    if not metadata[key].isdecimal():
        raise ModelError(f"the weights file {path} says {key}={metadata[key]!r}, not a number")
    return int(metadata[key])


def _cifar_resnet(config: ModelConfig) -> PretrainedNetwork:
    size, classes = config.input_size or CIFAR_SIZE, config.num_classes or CIFAR_CLASSES
    network = CifarResNet(config.depth or 0, classes)
    if config.pretrained and config.checkpoint is not None:
        load_weights(network, config.checkpoint)
    return _describe(network, config, (3, size, size), classes, IMAGENET_MEAN, IMAGENET_STD)


def _torchvision(config: ModelConfig) -> PretrainedNetwork:
    weights = _published_weights(config.name)
    published = len(weights.meta["categories"])
    classes = config.num_classes or published
    if config.pretrained and config.checkpoint is None:
        if classes != published:
            raise ModelError(
                f"model.num_classes={classes}: the published weights of {config.name} are for "
                f"{published} classes; set model.checkpoint to others"
            )
        _fetch(weights)
        # With the enum, so that the builder does what belongs to these weights, such as the
        # input transform of googlenet; what it unpickles here has just been read safely.
        network = torchvision_models.get_model(config.name, weights=weights, progress=False)
    else:
        network = torchvision_models.get_model(config.name, weights=None, num_classes=classes)
        if config.pretrained and config.checkpoint is not None:
            load_weights(network, config.checkpoint)
    preset = weights.transforms()
    size = config.input_size or preset.crop_size[0]
    described = _describe(network, config, (3, size, size), classes, preset.mean, preset.std)
    return replace(described, resize_ratio=preset.resize_size[0] / preset.crop_size[0])


def _published_weights(name: str) -> Any:
    """The member of torchvision's enum of weights that it recommends for ``name``."""
    names = torchvision_models.list_models(module=torchvision_models)
    if name not in names:
        close = difflib.get_close_matches(name, names, _SUGGESTIONS)
        hint = f"did you mean {', '.join(close)}" if close else f"for example {names[0]}"
        raise ModelError(f"model.name={name!r} is no classification network of torchvision; {hint}")
    return torchvision_models.get_model_weights(name).DEFAULT


def _fetch(weights: Any) -> None:
    """Have the published weights in torch's cache, and make sure that they are only tensors."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    if path.is_file():
        # Files in the cache are not checked by torchvision, and it unpickles them unprotected.
        read_state_dict(path)
        return
    try:
        weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, HTTPException, RuntimeError) as error:  # an URLError is an OSError
        raise ModelError(
            f"the weights {path.name} ({weights}) are not in {path.parent} and could not be "
            f"downloaded ({error}): put the file there, set model.checkpoint, or set "
            "model.pretrained=false"
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
    for key, values in {"mean": mean, "std": std}.items():
        if len(values) != input_shape[0]:
            raise ModelError(
                f"model.{key}={list(values)} has {len(values)} values; the input of {config.name} "
                f"has {input_shape[0]} channels"
            )
    return PretrainedNetwork(
        network=network.eval().float(),
        name=config.name,
        input_shape=input_shape,
        num_classes=num_classes,
        mean=tuple(mean),
        std=tuple(std),
        checksum=checksum(network),
    )
