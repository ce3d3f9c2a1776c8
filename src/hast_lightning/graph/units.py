"""Units of a network: the pieces between values through which everything has to pass.

Block reconstruction (BRECQ, Li et al., ICLR 2021) rebuilds a network piece by piece. A piece ends
where one value alone is still needed: behind the addition of a residual block, or behind a single
layer outside of blocks. A depthwise layer and the pointwise one behind it are one piece.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from torch import fx, nn

from hast_lightning.errors import ModelError
from hast_lightning.graph.operations import (
    BATCH_NORMS,
    LAYERS_WITH_PRODUCTS,
    is_activation,
    is_depthwise,
    layer_of,
)

FOLLOWERS = (*BATCH_NORMS, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class Unit(NamedTuple):
    """One piece of a network.

    Attributes:
        source: Name of the node whose value the piece takes in.
        target: Name of the node whose value it puts out.
        layers: Dotted names of its layers with weights, in order of execution.
    """

    source: str
    target: str
    layers: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return what reports call the unit: its first layer, and how many follow."""
        more = len(self.layers) - 1
        return self.layers[0] + (f" +{more}" if more else "")


def find_units(network: fx.GraphModule) -> list[Unit]:
    """Return the units of a network, in order of execution, that have layers with weights.

    Args:
        network: The float network, BatchNorms unfolded.

    Raises:
        ModelError: the network takes several inputs, or has no layer with weights.
    """
    inputs = [node for node in network.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise ModelError(f"the network takes {len(inputs)} inputs; units are found for one alone")
    units: list[Unit] = []
    source, layers = inputs[0].name, list[str]()
    for node, is_end in _ends(network):
        layer = layer_of(node, network)
        if isinstance(layer, LAYERS_WITH_PRODUCTS):
            layers.append(str(node.target))
        if is_end and layers and not is_depthwise(network.get_submodule(layers[-1])):
            units.append(Unit(source, node.name, tuple(layers)))
            source, layers = node.name, []
    if layers:
        last = _result(network)
        units.append(Unit(source, last.name, tuple(layers)))
    if not units:
        raise ModelError("the network has no layer with weights, so there is nothing to rebuild")
    return units


def _ends(network: fx.GraphModule) -> list[tuple[fx.Node, bool]]:
    """Return every node that computes, and whether a unit may end there.

    A unit ends at the last node of a chain of a layer, its BatchNorm and its activation: where
    the only value that is still needed enters a layer, an addition or the output.
    """
    nodes = list(network.graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    last_use = {node: max((place[user] for user in node.users), default=-1) for node in nodes}
    constant: set[fx.Node] = set()
    for node in nodes:
        sources = node.all_input_nodes
        if node.op == "get_attr" or (sources and constant.issuperset(sources)):
            constant.add(node)
    found = []
    live: set[fx.Node] = set()
    for i, node in enumerate(nodes):
        if node.op == "output":
            break
        live = {each for each in live if last_use[each] > i}
        if node not in constant:
            live.add(node)
        alone = live == {node}
        follows = len(node.users) == 1 and _belongs(next(iter(node.users)), network)
        found.append((node, alone and node.op != "placeholder" and not follows))
    return found


def _belongs(user: fx.Node, network: fx.GraphModule) -> bool:
    """Return whether a node belongs to the layer before it: BatchNorm, activation, dropout."""
    layer = layer_of(user, network)
    return isinstance(layer, FOLLOWERS) or is_activation(user, network)


def _result(network: fx.GraphModule) -> fx.Node:
    """Return the node whose value the network puts out."""
    (value,) = network.graph.output_node().all_input_nodes
    return value


def extract(network: fx.GraphModule, unit: Unit) -> fx.GraphModule:
    """Return a unit as a graph module of its own, whose layers are those of the network.

    Args:
        network: The float network, or a student of it.
        unit: Of the float network; the nodes of a student have the same names.
    """
    nodes = {node.name: node for node in network.graph.nodes}
    wanted = _between(nodes[unit.source], nodes[unit.target])
    graph = fx.Graph()
    copies = {nodes[unit.source]: graph.placeholder("x")}
    for node in network.graph.nodes:
        if node in wanted and node not in copies:
            copies[node] = graph.node_copy(node, lambda each: copies[each])
    graph.output(copies[nodes[unit.target]])
    graph.lint()
    return fx.GraphModule(network, graph)


def _between(source: fx.Node, target: fx.Node) -> Collection[fx.Node]:
    """Return the nodes that ``target`` is computed from, back to ``source``."""
    wanted: set[fx.Node] = set()
    pending = [target]
    while pending:
        node = pending.pop()
        if node in wanted or node is source:
            continue
        wanted.add(node)
        pending.extend(node.all_input_nodes)
    return wanted
