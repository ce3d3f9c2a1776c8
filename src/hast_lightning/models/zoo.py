"""From the ``model`` group to a pretrained network and what it expects as input."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from hast_lightning.config import ModelConfig
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ModelError
from hast_lightning.models.ensemble import with_teachers

_LOADERS = {
    "digits": ("bundled", "load_digits"),
    "cifar_resnet": ("bundled", "load_cifar_resnet"),
    "torchvision": ("torchvision_builders", "load"),
    "timm": ("timm_registry", "load"),
    "pytorchcv": ("pytorchcv_zoo", "load"),
    "efficientnet_lite0": ("efficientnet_lite0", "load"),
    "transformers": ("transformers_causal", "load"),
    "own": ("own", "load"),
    "given": ("given", "load"),
}
"""Module and function of each provider; a collection of networks takes seconds to import."""


def load(config: ModelConfig) -> PretrainedNetwork:
    """Load the network that the ``model`` group describes, ready to be traced and quantized.

    Raises:
        ModelError: it is unknown, its weights are missing, unsafe, or do not fit, or it cannot
            be traced.
    """
    module, function = _LOADERS[config.provider]
    provider = import_module(f"hast_lightning.models.providers.{module}")
    found: PretrainedNetwork = getattr(provider, function)(config)
    return found


def load_all(config: ModelConfig, teachers: Mapping[str, ModelConfig]) -> PretrainedNetwork:
    """Load the network that the student is made of, and those that teach together with it.

    Raises:
        ModelError: as :func:`load`; or they do not fit together.
    """
    return with_teachers(load(config), load_teachers(teachers))


def load_teachers(configs: Mapping[str, ModelConfig]) -> dict[str, PretrainedNetwork]:
    """Load networks by name; an error says whose it is.

    Raises:
        ModelError: as :func:`load`.
    """
    return {name: _load_named(name, config) for name, config in configs.items()}


def _load_named(name: str, config: ModelConfig) -> PretrainedNetwork:
    try:
        return load(config)
    except ModelError as error:
        raise type(error)(f"teachers.{name}: {error}") from error
