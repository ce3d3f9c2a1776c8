"""The user's own network: a function in a module of theirs, called by their wish."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from hast_lightning.config import ModelConfig
from hast_lightning.core.network import PICTURES, TOKENS, PretrainedNetwork
from hast_lightning.errors import ModelError, first_line
from hast_lightning.graph.tracing import innermost_place
from hast_lightning.models.checkpoints import load_weights
from hast_lightning.models.pretrained import (
    COLOURS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    channels_taken,
    describe,
)
from hast_lightning.models.text_network import describe_text


def load(config: ModelConfig) -> PretrainedNetwork:
    """Load the network that ``model.factory`` returns, with the weights of ``model.checkpoint``.

    The function is called without arguments, or with ``num_classes`` where that is set and the
    function takes it. Colour images are normalized with ImageNet's mean and deviation unless
    ``model.mean`` and ``model.std`` say otherwise; for other images these must be set.

    Raises:
        ModelError: there is no such function, it fails or returns no module, or its network or
            its weights cannot be used.
    """
    network = _call(_find(config), config)
    if config.checkpoint is not None:
        load_weights(network, config.checkpoint, key=config.checkpoint_key)
    if config.modality == TOKENS:
        return describe_text(network, config)
    channels = _input_channels(network, config)
    if channels != COLOURS and config.mean is None and config.modality == PICTURES:
        raise ModelError(
            f"model.mean and model.std are not set: the network {config.name} takes "
            f"{channels}-channel images, for which there is no usual normalization"
        )
    height, width = config.size or (0, 0)
    return describe(network, config, (channels, height, width), IMAGENET_MEAN, IMAGENET_STD)


def _find(config: ModelConfig) -> Callable[..., Any]:
    assert config.factory is not None
    module_name, _, function_name = config.factory.partition(":")
    # As "python -m" does; the console script does not.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"model.factory={config.factory}: there is no module {error.name!r} in "
            f"{Path.cwd()} or among the installed packages"
        ) from error
    except Exception as error:  # whatever the user's module raises when it is imported
        raise _failed(config, error) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ModelError(
            f"model.factory={config.factory}: the module {module_name} has no function "
            f"{function_name!r}"
        )
    found: Callable[..., Any] = function
    return found


def _call(function: Callable[..., Any], config: ModelConfig) -> nn.Module:
    options = _options(function, config)
    try:
        network = function(**options)
    except Exception as error:  # whatever the user's function raises
        raise _failed(config, error) from error
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"model.factory={config.factory} returned something of type {type(network).__name__}, "
            "not a torch.nn.Module"
        )
    return network


def _options(function: Callable[..., Any], config: ModelConfig) -> dict[str, int]:
    """What the function is called with; nothing else may be required."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # of functions that are not written in Python
        return {}
    chosen = config.num_classes is not None and "num_classes" in signature.parameters
    options = {"num_classes": config.num_classes or 0} if chosen else {}
    try:
        signature.bind(**options)
    except TypeError as error:
        raise ModelError(
            f"model.factory={config.factory} is called without arguments: {error}"
        ) from error
    return options


def _failed(config: ModelConfig, error: Exception) -> ModelError:
    reason = first_line(error)
    place = innermost_place(error.__traceback__)
    return ModelError(
        f"model.factory={config.factory} failed at {place}: {type(error).__name__}: {reason}"
    )


def _input_channels(network: nn.Module, config: ModelConfig) -> int:
    """The channels of the images: as many as are normalized, or as the first layer takes."""
    return channels_taken(network) if config.mean is None else len(config.mean)
