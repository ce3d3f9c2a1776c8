"""Any exported file: its format, writing it, and opening it without knowing what made it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from hast_lightning.config import DEFAULT_OPSET
from hast_lightning.core.outputs import Outputs, is_container, named_leaves, structure_of
from hast_lightning.errors import ModelError, first_line
from hast_lightning.export.description import Description
from hast_lightning.export.onnx_file import read_onnx, write_onnx
from hast_lightning.export.packed import read_packed, write_packed
from hast_lightning.export.program import read_program, write_program
from hast_lightning.graph.heads import NEXT_TOKENS

Network = Callable[[Tensor], Any]
"""From normalized images (N, C, H, W), float32, to logits (N, classes), both on the CPU, or to a
container of several tensors (N, ...)."""


class Format(NamedTuple):
    """One kind of file: its suffix, and how it is written and read."""

    suffix: str
    write: Callable[[fx.GraphModule, Description, Path], None]
    read: Callable[[Path], tuple[Network, Description]]


FORMATS = {
    "packed": Format(".safetensors", write_packed, read_packed),
    "onnx": Format(".onnx", write_onnx, read_onnx),
    "program": Format(".pt2", write_program, read_program),
}
"""By the name that ``export.formats`` has for it."""


def write_artifact(
    name: str,
    network: fx.GraphModule,
    description: Description,
    path: Path,
    opset: int = DEFAULT_OPSET,
) -> None:
    """Write a frozen network in the format ``name``, a key of :data:`FORMATS`.

    Args:
        name: ``packed``, ``onnx`` or ``program``.
        network: From :func:`~hast_lightning.export.frozen.freeze`.
        description: What the file says of itself.
        path: Ends in the format's suffix.
        opset: Of ONNX; the others have none.

    Raises:
        ConfigurationError: a package that the format needs is not installed.
        ModelError: the format cannot hold the network.
    """
    if name == "onnx":
        write_onnx(network, description, path, opset)
    else:
        FORMATS[name].write(network, description, path)


def open_artifact(path: Path) -> tuple[Network, Description]:
    """Return the network in an exported file, ready to run on the CPU, and the file's description.

    The suffix says which format it is. Nothing in the file is executed, whoever made it.

    Args:
        path: What :func:`~hast_lightning.export.packed.write_packed`,
            :func:`~hast_lightning.export.onnx_file.write_onnx` or
            :func:`~hast_lightning.export.program.write_program` wrote.

    Returns:
        A function that maps normalized images (N, C, H, W), float32, to logits (N, classes), or to
        several outputs in their container, without gradients; and the description, which says what
        images it expects.

    Raises:
        ConfigurationError: a package that the format needs is not installed.
        ModelError: the file is missing, damaged, from elsewhere, or has another suffix. Calling
            the function raises it where the file turns out to be damaged only then.
    """
    read = _format_of(path).read
    network, description = read(path)
    return _checked(network, description, path), description


def _format_of(path: Path) -> Format:
    for kind in FORMATS.values():
        if path.suffix == kind.suffix:
            return kind
    suffixes = ", ".join(kind.suffix for kind in FORMATS.values())
    raise ModelError(f"{path} is no exported network: its name ends in none of {suffixes}")


def _fits(logits: object, images: Tensor, description: Description) -> bool:
    """Return whether a network puts out what its description promises."""
    if description.outputs is not None:
        return _are_outputs(logits, images, description.outputs)
    if not isinstance(logits, Tensor):
        return False
    if description.output == NEXT_TOKENS:
        return logits.shape == (*images.shape, description.num_classes)
    return logits.shape[:2] == (len(images), description.num_classes) and logits.dim() != 3


def _are_outputs(found: object, images: Tensor, promised: Outputs) -> bool:
    """Return whether there is a container of the promised tensors; images may have another size."""
    if not is_container(found) or structure_of(found) != promised.structure:
        return False
    leaves = dict(named_leaves(found))
    return all(
        isinstance(leaves[name], Tensor)
        and leaves[name].shape[:1] == images.shape[:1]
        and leaves[name].dim() == 1 + len(shape)
        for name, shape in zip(promised.names, promised.shapes, strict=True)
    )


def _checked(network: Network, description: Description, path: Path) -> Network:
    """Return the network, which never gives anything but logits of the promised shape."""

    def run(images: Tensor) -> Any:
        try:
            with torch.no_grad():
                logits = network(images)
        except Exception as error:  # whatever an engine raises about a graph that does not fit
            reason = first_line(error)
            raise ModelError(f"{path} fails on images of {_shape(images)}: {reason}") from error
        if not _fits(logits, images, description):
            raise ModelError(
                f"{path} is damaged: it does not put out {_promised(description)} per image"
            )
        return logits

    return run


def _promised(description: Description) -> str:
    several = description.outputs
    return f"{description.num_classes} logits" if several is None else several.in_words


def _shape(images: Tensor) -> str:
    return "x".join(map(str, images.shape))
