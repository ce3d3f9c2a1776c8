"""Several tensors that a network puts out together: their names, their shapes, their container.

Inside of this package they are one tensor (N, values), each flattened and one behind the other, so
that batches, caches, the judge and evaluations carry them as they carry logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hast_lightning.errors import ModelError

Structure = str | tuple[Any, ...] | None
"""The name of a tensor; none; or a container: ``("dict", ((key, structure), ...))``, or ``"tuple"``
or ``"list"`` with ``(structure, ...)``."""
LARGEST_SIDE = 2**24
"""What no side of a tensor reaches; more in a file is damage."""
_SEQUENCES = {"tuple": tuple, "list": list}


def is_container(value: Any) -> bool:
    """Return whether a value is one of those that tensors come in."""
    return isinstance(value, Mapping | tuple | list)


def _items(container: Any) -> list[tuple[Any, Any]]:
    # Named tuples and dataclasses of libraries are tuples and mappings, too.
    return list(container.items() if isinstance(container, Mapping) else enumerate(container))


def named_leaves(output: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what stands in nested containers, behind its path (``maps.0``), in order."""
    for key, value in _items(output):
        name = f"{prefix}{key}"
        if is_container(value):
            yield from named_leaves(value, f"{name}.")
        else:
            yield name, value


def structure_of(output: Any, prefix: str = "") -> tuple[Any, ...]:
    """Return the container of an output, with names in the place of its tensors."""
    found = [
        (
            str(key),
            structure_of(value, f"{prefix}{key}.")
            if is_container(value)
            else (None if value is None else f"{prefix}{key}"),
        )
        for key, value in _items(output)
    ]
    if isinstance(output, Mapping):
        return ("dict", tuple(found))
    kind = "tuple" if isinstance(output, tuple) else "list"
    return (kind, tuple(each for _, each in found))


@dataclass(frozen=True)
class Outputs:
    """What a network puts out, where that are several tensors, or values and no classes.

    Attributes:
        names: Of the tensors, in their order: the path to each in its container. An only tensor
            without a container has the name ``""``.
        shapes: Of each for one sample, without N.
        structure: The container, with names in place of the tensors.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    structure: Structure

    @classmethod
    def alone(cls, shape: Sequence[int]) -> Outputs:
        """Return what a network has that puts out one tensor of that shape, without N."""
        return cls(("",), (tuple(shape),), "")

    @classmethod
    def of(cls, output: Any) -> Outputs:
        """Return names and shapes of what a network has put out in a container."""
        tensors = {name: leaf for name, leaf in named_leaves(output) if leaf is not None}
        shapes = tuple(tuple(tensor.shape[1:]) for tensor in tensors.values())
        return cls(tuple(tensors), shapes, structure_of(output))

    @property
    def several(self) -> bool:
        """Return whether there is more than one tensor."""
        return len(self.names) > 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the values of each for one sample."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def in_words(self) -> str:
        """Return names and shapes: ``out (21x32x32), aux (21x32x32)``."""
        return ", ".join(
            f"{name} ({'x'.join(map(str, shape)) or '1'})"
            for name, shape in zip(self.names, self.shapes, strict=True)
        )

    def split(self, values: Tensor) -> dict[str, Tensor]:
        """Return each tensor (N, ...) by name, of all in one.

        Args:
            values: (N, values); of an only tensor in any shape.
        """
        parts = torch.split(values.flatten(1), list(self.sizes), dim=1)
        shaped = zip(self.names, parts, self.shapes, strict=True)
        return {name: torch.unflatten(part, 1, shape or (1,)) for name, part, shape in shaped}

    def build(self, tensors: Mapping[str, Any]) -> Any:
        """Return the container with these tensors in it, by name."""
        return _built(self.structure, tensors)

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> Outputs:
        """Return what JSON says, which knows lists alone.

        Raises:
            ValueError: it is damaged; so are KeyError and TypeError.
        """
        names = tuple(content["names"])
        shapes = tuple(tuple(shape) for shape in content["shapes"])
        structure = _from_plain(content["structure"])
        whole = all(
            type(side) is int and 0 < side < LARGEST_SIDE for shape in shapes for side in shape
        )
        fits = tuple(_names_in(structure)) == names and len(shapes) == len(names) > 1
        if not (whole and fits and len(set(names)) == len(names)):
            raise ValueError(f"outputs={content!r}")
        return cls(names, shapes, structure)


def shape_of_output(outputs: Outputs | None, name: str) -> tuple[int, ...]:
    """Return the shape of the output that the setting ``output`` of a term names.

    Args:
        outputs: Of a network; none: it has one.
        name: Of one of them.

    Raises:
        ModelError: there is none of that name.
    """
    if outputs is None:
        raise ModelError(f"output={name}: the network has one output, which output=null is about")
    if name not in outputs.names:
        raise ModelError(f"output={name}: the network puts out {', '.join(outputs.names)}")
    return outputs.shapes[outputs.names.index(name)]


def _built(structure: Structure, tensors: Mapping[str, Any]) -> Any:
    if structure is None or isinstance(structure, str):
        return None if structure is None else tensors[structure]
    kind, items = structure
    if kind == "dict":
        return {key: _built(each, tensors) for key, each in items}
    return _SEQUENCES[kind](_built(each, tensors) for each in items)


def _from_plain(content: Any) -> Structure:
    if content is None or isinstance(content, str):
        return content
    kind, items = content
    if kind == "dict":
        return (kind, tuple((str(key), _from_plain(each)) for key, each in items))
    if kind not in _SEQUENCES:
        raise ValueError(f"outputs in a {kind}")
    return (kind, tuple(_from_plain(each) for each in items))


def _names_in(structure: Structure) -> Iterator[str]:
    if structure is None or isinstance(structure, str):
        yield from () if structure is None else (structure,)
        return
    kind, items = structure
    for item in items:
        yield from _names_in(item[1] if kind == "dict" else item)
