"""Networks that are handed over to teach together with the one that is quantized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from hast_lightning.config import ModelConfig
from hast_lightning.core.ensemble import OWN
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ConfigurationError
from hast_lightning.models.ensemble import with_teachers
from hast_lightning.models.providers import given
from hast_lightning.models.zoo import load_teachers

Teachers = Sequence[nn.Module] | Mapping[str, nn.Module]


def named_teachers(teachers: Teachers) -> dict[str, nn.Module]:
    """Return networks by name; those of a sequence are ``teacher1``, ``teacher2``, ...

    Raises:
        ConfigurationError: something is no module, or a name cannot be one.
    """
    if isinstance(teachers, Mapping):
        named = dict(teachers)
    elif isinstance(teachers, Sequence) and not isinstance(teachers, str):
        named = {f"teacher{number}": each for number, each in enumerate(teachers, start=1)}
    else:
        raise ConfigurationError(
            f"teachers={type(teachers).__name__} must be a list of modules, or modules by name"
        )
    for name, each in named.items():
        if not isinstance(name, str) or not name.isidentifier() or name == OWN:
            raise ConfigurationError(
                f"teachers: {name!r} is no name: letters, digits and underscores, and not {OWN!r}"
            )
        if not isinstance(each, nn.Module):
            raise ConfigurationError(
                f"teachers: {name} is of type {type(each).__name__}, and has to be a module; "
                f"overrides='+model@teachers.{name}=...' names one of the configuration"
            )
    return {name: given.unwrapped(each) for name, each in named.items()}


def taught_together(
    pretrained: PretrainedNetwork,
    configured: Mapping[str, ModelConfig],
    handed_over: Mapping[str, nn.Module],
) -> PretrainedNetwork:
    """Return the network that knows who teaches together with it.

    Networks that are handed over take the inputs that it takes, normalized as for it.

    Raises:
        ModelError: one cannot be used, or does not fit.
    """
    others = load_teachers(configured)
    for name, network in handed_over.items():
        config = ModelConfig(
            provider="given",
            name=name,
            mean=list(pretrained.mean),
            std=list(pretrained.std),
            modality=pretrained.modality,
        )
        others[name] = given.accept(network, config, pretrained.input_shape)
    return with_teachers(pretrained, others)
