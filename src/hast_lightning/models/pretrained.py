"""A pretrained network together with everything its provider knows about it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hast_lightning.config import ModelConfig
from hast_lightning.core.network import (
    DIFFUSION,
    FEATURES,
    PICTURES,
    RESIZE_RATIO,
    PretrainedNetwork,
    example_inputs,
)
from hast_lightning.core.outputs import Outputs
from hast_lightning.errors import ModelError
from hast_lightning.graph.constants import fix_constants
from hast_lightning.graph.operations import CONVOLUTION_LAYERS
from hast_lightning.graph.outputs import outputs_of_graph, puts_out_several
from hast_lightning.graph.tracing import trace
from hast_lightning.models.checkpoints import checksum
from hast_lightning.models.input_statistics import input_statistics
from hast_lightning.models.noise_schedule import noise_schedule
from hast_lightning.models.preparation import prepare
from hast_lightning.models.timed import TRIED, TimedNetwork, puts_out_noise, timed_inputs

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
COLOURS = 3


def channels_taken(network: nn.Module) -> int:
    """Return the channels that the first convolution takes; without one those of a photograph."""
    convolutions = (layer for layer in network.modules() if isinstance(layer, CONVOLUTION_LAYERS))
    first = next(convolutions, None)
    return COLOURS if first is None else first.in_channels


def describe(
    network: nn.Module,
    config: ModelConfig,
    input_shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    resize_ratio: float = RESIZE_RATIO,
    class_names: Sequence[str] | None = None,
) -> PretrainedNetwork:
    """Prepare ``network`` and check what is said of it; ``config`` goes before the provider.

    Args:
        network: with its weights.
        config: the ``model`` group.
        input_shape: (C, H, W).
        mean: the provider's, per channel.
        std: the provider's, per channel.
        resize_ratio: as in :class:`PretrainedNetwork`.
        class_names: the provider's; ignored where the network has another number of classes.

    Raises:
        ModelError: the network cannot be used, or ``config`` contradicts it.
        DataError: the noise schedule of a file cannot be read.
    """
    if config.modality != PICTURES and len(input_shape) != 3:
        raise ModelError(
            f"model.modality={config.modality} is for inputs (channels, height, width), and the "
            f"network {config.name} takes {tuple(input_shape)}: signals (channels, length) need "
            f"model.modality={PICTURES}"
        )
    if config.modality == DIFFUSION:
        return _describe_denoiser(network, config, input_shape)
    features = config.modality == FEATURES
    if features:  # as the network takes them, if nobody says otherwise
        mean, std = (0.0,) * input_shape[0], (1.0,) * input_shape[0]
    mean, std = config.mean or mean, config.std or std
    _check_channels(config.name, input_shape, {"mean": mean, "std": std})
    network = network.eval().float()
    _require_finite(network, config.name)
    prepared, num_classes = prepare(network, input_shape, config.name)
    outputs = outputs_of_graph(prepared, example_inputs(TRIED, input_shape))
    _check_classes(config, num_classes, outputs)
    _check_front_end(config, input_shape)
    names = config.class_names or class_names
    center, spread = input_statistics(prepared, input_shape) if features else (None, None)
    return PretrainedNetwork(
        network=prepared,
        name=config.name,
        input_shape=input_shape,
        num_classes=num_classes,
        mean=tuple(mean),
        std=tuple(std),
        checksum=checksum(network),
        resize_ratio=resize_ratio,
        class_names=tuple(names) if names and len(names) == num_classes else None,
        taps=None if config.taps is None else tuple(config.taps),
        modality=config.modality,
        center=center,
        spread=spread,
        front_end=config.hearing,
        outputs=outputs,
    )


def _describe_denoiser(
    network: nn.Module, config: ModelConfig, shape: tuple[int, int, int]
) -> PretrainedNetwork:
    """Describe a network of (N, C, H, W) and (N,) as one of (N, C + 1, H, W)."""
    network = network.eval().float()
    _require_finite(network, config.name)
    alpha_bar = noise_schedule(network, config)
    inputs, timed_shape = timed_inputs(shape, len(alpha_bar)), (shape[0] + 1, *shape[1:])
    prepared, channels = prepare(TimedNetwork(network), timed_shape, config.name, inputs)
    prepared = trace(prepared)
    if puts_out_several(prepared):
        raise ModelError(
            f"the network {config.name} puts out several tensors, and one that denoises puts out "
            "the noise alone: wrap it in a module that returns it"
        )
    fix_constants(prepared, inputs)
    if not puts_out_noise(prepared, inputs):
        raise ModelError(
            f"the network {config.name} does not put out as many channels of as many pixels as it "
            f"takes in ({'x'.join(map(str, shape))}), which the noise has"
            " (a learned variance belongs into another network)"
        )
    return PretrainedNetwork(
        network=prepared,
        name=config.name,
        input_shape=timed_shape,
        num_classes=channels,
        mean=(0.0,) * (shape[0] + 1),
        std=(1.0,) * (shape[0] + 1),
        checksum=checksum(network),
        modality=config.modality,
        alpha_bar=alpha_bar,
    )


def _require_finite(network: nn.Module, name: str) -> None:
    """Refuse weights and statistics that no image could fix."""
    for tensor_name, value in network.state_dict().items():
        if is_lazy(value):
            raise ModelError(
                f"the network {name} has no weights yet ({tensor_name}): show it an image first"
            )
        if isinstance(value, Tensor) and not value.isfinite().all():
            raise ModelError(f"the network {name} has NaN or infinite values in {tensor_name}")


def _check_channels(
    name: str, input_shape: tuple[int, int, int], given: dict[str, Sequence[float]]
) -> None:
    for key, values in given.items():
        if len(values) != input_shape[0]:
            raise ModelError(
                f"model.{key}={list(values)} has {len(values)} values; the input of {name} "
                f"has {input_shape[0]} channels"
            )


def _check_front_end(config: ModelConfig, input_shape: tuple[int, int, int]) -> None:
    front_end = config.hearing
    if front_end is not None and tuple(input_shape) != front_end.shape:
        raise ModelError(
            f"model.front_end makes features of (channels, frames, coefficients) = "
            f"{front_end.shape}; the network {config.name} takes {tuple(input_shape)}"
        )


def _check_classes(config: ModelConfig, num_classes: int, outputs: Outputs | None) -> None:
    if outputs is not None:
        for key in ("num_classes", "class_names"):
            if getattr(config, key) is not None:
                raise ModelError(
                    f"model.{key} is set, and the network {config.name} puts out several tensors "
                    f"({outputs.in_words}), which are compared as they are: leave it out"
                )
        return
    if num_classes < 2:
        raise ModelError(
            f"the network {config.name} puts out {num_classes} number an image; a classifier puts "
            "out one for each of two classes at least"
        )
    if config.num_classes not in (None, num_classes):
        raise ModelError(
            f"model.num_classes={config.num_classes}: the network {config.name} puts out "
            f"{num_classes} classes"
        )
    if config.class_names is not None and len(config.class_names) != num_classes:
        raise ModelError(
            f"model.class_names has {len(config.class_names)} names; the network {config.name} "
            f"puts out {num_classes} classes (model.class_names=null leaves them out)"
        )
