"""The timestep in the graph of a network that denoises: the last channel of its only input."""

from __future__ import annotations

import operator

from torch import fx

from hast_lightning.graph.operations import values_of


def is_timestep(node: fx.Node) -> bool:
    """Return whether ``node`` reads the timesteps (N,) off an input (N, C + 1, H, W)."""
    if node.op != "call_function" or node.target is not operator.getitem:
        return False
    source, index = node.args
    from_input = isinstance(source, fx.Node) and source.op == "placeholder"
    return from_input and isinstance(index, tuple) and tuple(index[1:]) == (-1, 0, 0)


def of_timestep_alone(graph: fx.Graph) -> set[fx.Node]:
    """Return the values that are computed from the timestep, and not from the picture.

    The picture's shape or device may have a part in it.
    """
    values = values_of(graph)
    found: set[fx.Node] = set()
    for node in values:
        sources = [source for source in node.all_input_nodes if source in values]
        if is_timestep(node) or (sources and all(source in found for source in sources)):
            found.add(node)
    return found
