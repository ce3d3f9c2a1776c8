"""Shapes of the values of a network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

SHAPE = "shape"
"""Key of a node's meta data."""


class _Shapes(fx.Interpreter):
    """Leaves the shape of every tensor on its node, of several tensors that of the first.

    torch's own ``ShapeProp`` does so, too, and imports SymPy for it, which takes half a second.
    """

    def run_node(self, n: fx.Node) -> Any:
        """Compute the node's value, and leave its shape."""
        value = super().run_node(n)
        shown = value[0] if isinstance(value, tuple | list) and value else value
        if isinstance(shown, Tensor):
            n.meta[SHAPE] = shown.shape
        return value


def note_shapes(network: fx.GraphModule, inputs: Tensor) -> None:
    """Leave the shape of every tensor in the meta data of its node, at ``SHAPE``.

    A node of several tensors, as of a value that is split, has the shape of the first.

    Args:
        network: Whose nodes get them.
        inputs: (N, ...).
    """
    with torch.no_grad():
        _Shapes(network).run(inputs)
