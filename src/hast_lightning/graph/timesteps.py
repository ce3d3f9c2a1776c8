"""The timestep in the graph of a network that denoises: the last channel of its only input."""

from __future__ import annotations

import operator
from collections.abc import Collection

from torch import fx

from hast_lightning.graph.operations import rearranges, values_of

_ARITHMETIC = frozenset(
    "mul truediv div add sub neg to float matmul mm bmm outer einsum".split()  # noqa: SIM905
)


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


def timesteps_of(network: fx.GraphModule) -> set[fx.Node]:
    """Return the values that are timesteps: read off the input, reshaped, scaled and shifted.

    None where the input has no timestep. What a function such as a sine makes of one is none.
    """
    found: set[fx.Node] = set()
    values = values_of(network.graph)
    for node in values:
        sources = [source for source in node.all_input_nodes if source in values]
        scaled = getattr(node.target, "__name__", node.target) in _ARITHMETIC
        scaled = node.op in ("call_function", "call_method") and scaled
        of_times = bool(sources) and all(source in found for source in sources)
        if is_timestep(node) or (of_times and (scaled or rearranges(node, network))):
            found.add(node)
    return found


def without_timesteps(nodes: Collection[fx.Node], network: fx.GraphModule) -> list[fx.Node]:
    """Return nodes whose values have ranges: the picture for the input, and no timestep.

    Args:
        nodes: Of the graph of ``network``, in order of execution.
        network: One that denoises, or any other, whose nodes all stay.
    """
    times = timesteps_of(network)
    if not times:
        return list(nodes)
    found: dict[fx.Node, None] = {}
    for node in nodes:
        parts = list(node.users) if node.op == "placeholder" else [node]
        found |= dict.fromkeys(part for part in parts if part not in times)
    return list(found)
