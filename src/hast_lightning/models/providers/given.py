"""A network that is handed over in Python, as an object."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from hast_lightning.config import ModelConfig
from hast_lightning.core.network import PICTURES, PretrainedNetwork
from hast_lightning.errors import ModelError, first_line
from hast_lightning.models.pretrained import (
    COLOURS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    channels_taken,
    describe,
)

PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
COMPILED = "_orig_mod"
"""Name of the module that torch.compile wraps, among the wrapper's children."""
InputShape = tuple[int, int, int]


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network without the wrappers of torch.compile and data-parallel training."""
    while isinstance(inner := _inside(network), nn.Module):
        network = inner
    return network


def _inside(network: nn.Module) -> nn.Module | None:
    if isinstance(network, PARALLEL):
        wrapped: nn.Module = network.module
        return wrapped
    # By name: importing torch's compiler takes seconds.
    return dict(network.named_children()).get(COMPILED)


def load(config: ModelConfig) -> PretrainedNetwork:
    """Refuse: no configuration can hold a network, so a run with one cannot be taken up again.

    Raises:
        ModelError: always.
    """
    raise ModelError(
        "model.provider=given: the network was handed over in Python (hast_lightning.quantize), "
        "and only there can it be; on the command line use model=own model.factory=module:function"
    )


def accept(
    network: nn.Module, config: ModelConfig, input_shape: Sequence[int] | int | None
) -> PretrainedNetwork:
    """Return a copy of ``network`` on the CPU, ready to be quantized.

    Args:
        network: With its weights; left as it is.
        config: Its name, and what is known of its output and its normalization. What is not is
            asked of the network; colour images are otherwise normalized as ImageNet's.
        input_shape: (C, H, W), the side of a square, or (C, L) of signals; none: the network says
            it itself, as those of timm and pytorchcv do.

    Raises:
        ModelError: the input is not known, or the network cannot be used.
    """
    _refuse_scripts(network, config.name)
    shape = _input_shape(network, config, input_shape)
    mean, std = _normalization(network, config, shape[0])
    try:
        own = copy.deepcopy(network).cpu()
    except Exception as error:  # whatever the network's own parts raise
        reason = first_line(error)
        raise ModelError(f"the network {config.name} cannot be copied: {reason}") from error
    _unwrap_parts(own)
    return describe(own, config, shape, mean, std)


def _refuse_scripts(network: nn.Module, name: str) -> None:
    if any(isinstance(part, torch.jit.ScriptModule) for part in network.modules()):
        raise ModelError(
            f"the network {name} is TorchScript, which no graph can be drawn of: hand over the "
            "module that it was made from"
        )


def _unwrap_parts(network: nn.Module) -> None:
    """In place: only a part of some networks is trained in parallel, or compiled."""
    for name, part in list(network.named_children()):
        if (inner := unwrapped(part)) is not part:
            setattr(network, name, inner)
        _unwrap_parts(inner)


def _input_shape(
    network: nn.Module, config: ModelConfig, given: Sequence[int] | int | None
) -> InputShape:
    shape = given if given is not None else _own_shape(network)
    if shape is None:
        raise ModelError(
            f"input_shape is not given, and the network {config.name} does not say what images it "
            "takes: pass (channels, height, width), for example input_shape=(3, 224, 224)"
        )
    if isinstance(shape, int):
        shape = (channels_taken(network), shape, shape)
    sizes = tuple(shape)
    if len(sizes) not in (2, 3) or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ModelError(
            f"input_shape={given!r} must be (channels, height, width), one side, or (channels, "
            "length)"
        )
    # Of signals it has two numbers, which all that takes no images alone is ready for.
    return cast("InputShape", sizes)


def _own_shape(network: nn.Module) -> tuple[int, ...] | None:
    """The input that networks of timm and pytorchcv remember."""
    if size := _timm_facts(network).get("input_size"):
        return tuple(size)
    side: Any = getattr(network, "in_size", None)
    return (channels_taken(network), *side) if isinstance(side, tuple) else None


def _timm_facts(network: nn.Module) -> dict[str, Any]:
    facts: Any = getattr(network, "pretrained_cfg", None)
    return facts if isinstance(facts, dict) else {}


def _normalization(
    network: nn.Module, config: ModelConfig, channels: int
) -> tuple[Sequence[float], Sequence[float]]:
    if config.mean is not None and config.std is not None:
        return config.mean, config.std
    facts = _timm_facts(network)
    if "mean" in facts and "std" in facts:
        return facts["mean"], facts["std"]
    if channels != COLOURS and config.modality == PICTURES:
        raise ModelError(
            f"mean and std are not given: the network {config.name} takes {channels}-channel "
            "images, for which there is no usual normalization"
        )
    return IMAGENET_MEAN, IMAGENET_STD
