"""The one name that a value of a network has in tables, metrics and messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import fx


def value_names(graph: fx.Graph) -> dict[fx.Node, str]:
    """Return what the value of each node is called, by node.

    What a module puts out has the module's dotted name, as in ``named_modules()``; from the second
    call of a module on with its number behind it: ``layer1.0.relu``, ``layer1.0.relu-2``. What a
    function puts out, and the input, have no module: they have the name of the node, ``add_1``.
    """
    calls: Counter[str] = Counter()
    names = {}
    for node in graph.nodes:
        names[node] = node.name
        if node.op == "call_module":
            target = str(node.target)
            calls[target] += 1
            names[node] = target if calls[target] == 1 else f"{target}-{calls[target]}"
    return names


def names_of(graph: fx.Graph, nodes: Iterable[str]) -> tuple[str, ...]:
    """Return what the values of some nodes are called, which are given by their names."""
    names = {node.name: name for node, name in value_names(graph).items()}
    return tuple(names[node] for node in nodes)
