"""What a network puts out, and that it depends on nothing but the image.

A file holds a network that answers an image in one way: alone or among others, today or tomorrow.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hast_lightning.errors import ModelError, first_line
from hast_lightning.graph.outputs import MAPS_DIMENSIONS, as_one, only_tensor
from hast_lightning.graph.tracing import innermost_place

_TOLERANCE = 1e-3
_ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@torch.no_grad()
def outputs_of(network: nn.Module, images: Tensor, name: str) -> Tensor:
    """Return what a network puts out for images: (N, classes), or maps (N, classes, H, W).

    Several outputs are joined to (N, values).

    Args:
        network: In evaluation mode.
        images: (N, C, H, W).
        name: The network's, for messages.

    Raises:
        ModelError: it does not take such images, wants more than images, or puts out something
            else, or numbers that are not finite.
    """
    shape = "x".join(map(str, images.shape[1:]))
    defaults = _defaults(network, name)
    called = f", called with its own {defaults}," if defaults else ""
    output = as_one(
        _called(network, images, f"{name}{called}", f"images of {shape}"),
        f"{name}{called}",
        len(images),
    )
    if not isinstance(output, Tensor) or not _are_logits(output, len(images)):
        given = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else None
        count = f"{len(images)} image{'s' * (len(images) > 1)}"
        raise ModelError(
            f"the network {name}{called} returns {given or 'a ' + type(output).__name__} for "
            f"{count} of {shape}; expected logits (images, classes), or maps of them (images, "
            "classes, height, width)"
        )
    if not bool(output.isfinite().all()):
        raise ModelError(
            f"the network {name}{called} puts out NaN or infinite values for images of {shape}, "
            "which nothing can be compared with"
        )
    return output


def answer_of(network: nn.Module, inputs: Tensor, called: str, what: str) -> Any:
    """Return what a network's own code gives for inputs, the only tensor where it gives one.

    Args:
        network: In evaluation mode.
        inputs: (N, ...).
        called: The network and how it is called, for messages.
        what: The inputs in words, with their shape.

    Raises:
        ModelError: it fails, or gives several tensors.
    """
    return only_tensor(_called(network, inputs, called, what), called)


def _called(network: nn.Module, inputs: Tensor, called: str, what: str) -> Any:
    """Return whatever a network's own code gives for inputs."""
    try:
        # Some networks normalize their input in place.
        return network(inputs.clone())
    except Exception as error:  # whatever a network's own code raises
        reason = first_line(error)
        place = innermost_place(error.__traceback__)
        raise ModelError(
            f"the network {called} fails on {what} (model.input_size), at {place}: {reason}"
        ) from error


def _are_logits(output: Tensor, images: int) -> bool:
    """Return whether there are classes for each image, or for each of several positions of it."""
    maps = output.dim() == MAPS_DIMENSIONS and output[0, 0].numel() > 1
    return (output.dim() == 2 or maps) and len(output) == images


def _defaults(network: nn.Module, name: str) -> str:
    """Return the arguments that have defaults, ``mask=None, ...``, in the words of their code.

    Raises:
        ModelError: there is one without, beside the images.
    """
    try:
        _, *others = inspect.signature(network.forward).parameters.values()
    except ValueError:  # no arguments at all, which the call itself says
        return ""
    others = [each for each in others if each.kind not in _ANY_NUMBER]
    for each in others:
        if each.default is each.empty:
            raise ModelError(
                f"the network {name} needs its argument {each.name!r} beside the images, which "
                "has no default: images are all that a classifier is given here"
            )
    return ", ".join(f"{each.name}={each.default!r}" for each in others)


def differ(expected: Tensor, found: Tensor) -> bool:
    """Return whether two tensors of outputs differ by more than rounding."""
    scale = float(expected.abs().max())
    return not torch.allclose(expected, found, _TOLERANCE, _TOLERANCE * scale, equal_nan=True)


def steady_outputs(network: nn.Module, images: Tensor, name: str) -> Tensor:
    """Return what a network puts out, (N, classes), where that is a function of each image.

    Args:
        network: In evaluation mode; its buffers stay as they are.
        images: (N, C, H, W), N of two or more.
        name: The network's, for messages.

    Raises:
        ModelError: as :func:`outputs_of`; or it answers an image in another way when it is asked
            again, or asked about the image alone; or it changes its own buffers.
    """
    before = _buffers(network)
    try:
        # Some networks prepare something in their first pass.
        first = outputs_of(network, images, name)
        prepared = _buffers(network)
        outputs = outputs_of(network, images, name)
        changed = [
            key for key, value in _buffers(network).items() if _differs(prepared, key, value)
        ]
        if changed:
            raise ModelError(
                f"the network {name} changes its buffer {changed[0]} at every pass, also in "
                "evaluation mode, which no file can hold: have it changed in training mode alone"
            )
        if differ(first, outputs):
            raise ModelError(
                f"the network {name} gives other answers when it is asked again: its code draws "
                "random numbers in evaluation mode, or remembers earlier images"
            )
        _require_alone(network, images, outputs, name)
        return outputs
    finally:
        _restore(network, before)


def _require_alone(network: nn.Module, images: Tensor, outputs: Tensor, name: str) -> None:
    """Refuse answers that depend on the other images of a batch."""
    unset = [
        key
        for key, layer in network.named_modules()
        if isinstance(layer, _BatchNorm) and (layer.running_mean is None or layer.training)
    ]
    cause = (
        f"its BatchNorm {unset[0]} has no running statistics, and takes those of the batch "
        "(track_running_stats=False)"
        if unset
        else "its code computes with all images of a batch together"
    )
    try:
        alone = outputs_of(network, images[:1], name)
    except ModelError as error:
        reason = f": {cause}" if unset else ""
        raise ModelError(f"{error} (two images at once are answered{reason})") from error
    if differ(outputs[:1], alone):
        raise ModelError(
            f"the network {name} answers an image in another way when other images are in the "
            f"batch: {cause}. No file can hold that"
        )


def _buffers(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.named_buffers()}


def _differs(before: dict[str, Tensor], name: str, value: Tensor) -> bool:
    other = before.get(name)
    if other is None or other.shape != value.shape:
        return True
    return not torch.allclose(other, value, 0, 0, equal_nan=True)


@torch.no_grad()
def _restore(network: nn.Module, before: dict[str, Tensor]) -> None:
    for name, value in network.named_buffers():
        if name in before and before[name].shape == value.shape:
            value.copy_(before[name])


def replaced_forwards(network: nn.Module) -> list[str]:
    """Return the dotted names of modules whose ``forward`` is not that of their class."""
    return [name for name, module in network.named_modules() if "forward" in vars(module)]
