"""The arguments that a layer of ``torch.nn`` was constructed with, read off the layer."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from hast_lightning.errors import ModelError

_PLACES = ("device", "dtype")
_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def arguments_of(layer: nn.Module, kind: type[nn.Module]) -> dict[str, Any]:
    """Return arguments that construct a layer like ``layer`` (weights aside).

    The layers of ``torch.nn`` keep what they are constructed with in attributes of the same
    names, only that ``bias`` is the parameter itself. What the class would choose itself is left
    out, so that an argument which only some versions of torch know is named where it is needed
    and nowhere else.

    Args:
        layer: Of the class ``kind`` or of one derived from it.
        kind: A class of ``torch.nn``.

    Raises:
        ModelError: the layer does not remember an argument that it cannot do without.
    """
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if name in _PLACES or parameter.kind in _ANY:
            continue
        if hasattr(layer, name):
            value = _argument(layer, name)
            if type(value) is not type(parameter.default) or value != parameter.default:
                found[name] = value
        elif parameter.default is parameter.empty:
            raise ModelError(f"a {kind.__name__} does not say what its {name} is")
    return found


def _argument(layer: nn.Module, name: str) -> Any:
    value = getattr(layer, name)
    if name != "bias":
        return value
    # Without affine parameters there is no bias, whatever was asked for.
    return value is not None or not getattr(layer, "affine", True)
