"""Units of a network: the pieces between values through which everything has to pass.

Block reconstruction (BRECQ, Li et al., ICLR 2021) rebuilds a network piece by piece. A piece ends
where one value alone is still needed: behind the addition of a residual block, or behind a single
layer outside of blocks. A depthwise layer and the pointwise one behind it are one piece, and so is
an inverted residual: a pointwise layer, a depthwise one, and the pointwise one behind it.

In a network that denoises other values live on beside it: the embedding of the timestep, and skips
that wait for their concatenation. There a piece may end all the same, and takes in several values.

Of several outputs each has pieces of its own: what it needs beside those of the outputs before it,
which need less. A layer belongs to the first piece that calls it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from torch import fx, nn

from hast_lightning.errors import ModelError
from hast_lightning.graph.blocks import is_fed_by_depthwise, nodes_called
from hast_lightning.graph.names import names_of
from hast_lightning.graph.operations import (
    BATCH_NORMS,
    CONCATENATIONS,
    CONVOLUTION_LAYERS,
    IDENTITIES,
    LAYERS_WITH_PRODUCTS,
    calls,
    constants_of,
    is_activation,
    is_depthwise,
    is_pointwise,
    layer_of,
    rearranges,
    values_of,
)
from hast_lightning.graph.outputs import is_joint
from hast_lightning.graph.timesteps import of_timestep_alone
from hast_lightning.graph.tracing import expose

FOLLOWERS = (*BATCH_NORMS, *IDENTITIES)
FOLLOWERS_OF_CONVOLUTIONS = (nn.GroupNorm, nn.LayerNorm)
"""Elsewhere they stand before the layers that they belong to, as in transformers."""
ENDS_SHOWN = 6
"""Names that a message shows, at most."""

MayLiveOn = Callable[[fx.Node, fx.Node, Collection[fx.Node]], bool]
"""Tells of a value, a unit's end and the ends before it whether the value may be needed behind."""


class Unit(NamedTuple):
    """One piece of a network.

    Attributes:
        source: Name of the node whose value the piece takes in.
        target: Name of the node whose value it puts out.
        layers: Dotted names of its layers with weights that no unit before it has, in order of
            execution.
        beside: Names of other nodes whose values it takes in, in their order.
    """

    source: str
    target: str
    layers: tuple[str, ...]
    beside: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[str, ...]:
        """Return the names of all nodes whose values the piece takes in."""
        return (self.source, *self.beside)

    @property
    def name(self) -> str:
        """Return what reports call the unit: its first layer, and how many follow."""
        more = len(self.layers) - 1
        return self.layers[0] + (f" +{more}" if more else "")


def find_units(
    network: fx.GraphModule, *, timed: bool = False, ends: Sequence[str] | None = None
) -> list[Unit]:
    """Return the units of a network, in order of execution, that have layers with weights.

    Args:
        network: The float network, BatchNorms unfolded.
        timed: It denoises: embeddings of the timestep and skips may live on beside a unit's end.
        ends: Patterns of names of nodes, or of the layers that they call: no unit ends but behind
            these, and at the end of the network; none: each ends as early as it may.

    Raises:
        ModelError: the network takes several inputs, or has no layer with weights; no unit may end
            at one of ``ends``, or only where others do before it.
    """
    found = _find(network, timed, None)
    if ends is None:
        return found
    wanted: set[str] = set()
    for pattern in ends:
        matching = nodes_called(network, pattern) & {unit.target for unit in found}
        if not matching:
            some = ", ".join(names_of(network.graph, [unit.target for unit in found[:ENDS_SHOWN]]))
            raise ModelError(
                f"no unit may end at {pattern!r}, where one value alone is needed behind a layer; "
                f"it may at {some}{', ...' * (len(found) > ENDS_SHOWN)}"
            )
        wanted |= matching
    units = _find(network, timed, wanted)
    for missing in sorted(wanted - {unit.target for unit in units}):
        _refuse_end(missing, wanted, found, network)
    return units


def _refuse_end(
    missing: str, wanted: Collection[str], found: Sequence[Unit], network: fx.GraphModule
) -> None:
    """Say which ends a unit's end needs before it, since their values live on beside it."""
    (number,) = (i for i, unit in enumerate(found) if unit.target == missing)
    later = {name for unit in found[number + 1 :] for name in unit.sources}
    before = [unit.target for unit in found[:number] if unit.target in later.difference(wanted)]
    (end, *others) = names_of(network.graph, [missing, *before])
    raise ModelError(
        f"no unit may end at {end} unless others end before it, whose values are needed behind it, "
        f"too: name {' and '.join(others) or 'others'} as well"
    )


def _find(network: fx.GraphModule, timed: bool, wanted: Collection[str] | None) -> list[Unit]:
    """Return the units, which end as early as they may, or at nodes of these names alone."""
    inputs = [node for node in network.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise ModelError(f"the network takes {len(inputs)} inputs; units are found for one alone")
    result, ends = _result(network), {inputs[0]: None}
    if is_joint(result):
        units = list(_units_of_several(network, result, ends, wanted))
    else:
        nodes = [node for node in network.graph.nodes if node.op != "output"]
        may_live_on = _MayLiveOn(network) if timed else _is_size_among(network)
        units = list(_units_of(network, nodes, result, ends, set(), may_live_on, wanted))
    if not units:
        raise ModelError("the network has no layer with weights, so there is nothing to rebuild")
    return units


def _units_of_several(
    network: fx.GraphModule,
    joint: fx.Node,
    ends: dict[fx.Node, None],
    wanted: Collection[str] | None,
) -> Iterator[Unit]:
    """Yield the units of each output in turn, in order of execution; ``ends`` gets their ends."""
    # Such as the size of the input, which maps are enlarged to.
    may_live_on, listed = _MayLiveOn(network), set[str]()
    outputs = [node for node in network.graph.nodes if joint in node.users]
    # Else values inside of an output's units, where others branch off, would be computed in theirs.
    for output in sorted(outputs, key=lambda each: len(_between((), each)[0])):
        needed, _ = _between(ends, output)
        nodes = [node for node in network.graph.nodes if node in needed]
        yield from _units_of(network, nodes, output, ends, listed, may_live_on, wanted)


def _units_of(
    network: fx.GraphModule,
    nodes: Sequence[fx.Node],
    result: fx.Node,
    ends: dict[fx.Node, None],
    listed: set[str],
    may_live_on: MayLiveOn,
    wanted: Collection[str] | None = None,
) -> Iterator[Unit]:
    """Yield the units among some nodes.

    Args:
        network: That has them.
        nodes: In order of execution.
        result: What they are for.
        ends: Of units before; those of these are added.
        listed: Names of the layers of units before; those of these are added.
        may_live_on: Tells which values may be needed behind an end beside it.
        wanted: Names of the nodes where a unit may end; none: all.
    """
    layers: list[str] = []
    for node, live in _live_values(nodes, result):
        layer = layer_of(node, network)
        if isinstance(layer, LAYERS_WITH_PRODUCTS) and node.target not in listed:
            layers.append(str(node.target))
            listed.add(str(node.target))
        others = live - {node}
        is_end = node in live and not _is_followed(node, network) and node.op != "placeholder"
        is_end = is_end and all(may_live_on(other, node, ends) for other in others)
        is_end = is_end and (wanted is None or node.name in wanted)
        if is_end and layers and not _goes_on(node, layers, network):
            yield _unit(ends, node, layers)
            ends[node], layers = None, []
    if layers:
        yield _unit(ends, result, layers)
        ends[result] = None


def _goes_on(node: fx.Node, layers: Sequence[str], network: fx.GraphModule) -> bool:
    """Return whether a block of these layers goes on behind ``node``.

    A depthwise layer waits for the pointwise one, also where its channels are scaled by another
    branch before, and a pointwise layer for a depthwise one that takes in what it has expanded.
    """
    *before, last = (network.get_submodule(name) for name in layers)
    if is_depthwise(last):
        return True
    takers = {user: layer_of(user, network) for user in _takers(node, network)}
    if any(is_pointwise(t) and is_fed_by_depthwise(n, network) for n, t in takers.items()):
        return True
    products = [each for each in takers.values() if isinstance(each, LAYERS_WITH_PRODUCTS)]
    expands = not before and is_pointwise(last)
    # A head that takes it in as well has the end for its source.
    return expands and bool(products) and all(map(is_depthwise, products))


def _takers(node: fx.Node, network: fx.GraphModule) -> Iterator[fx.Node]:
    """Yield the nodes that compute with ``node``'s value, through padding and the like."""
    for user in node.users:
        if rearranges(user, network):
            yield from _takers(user, network)
        else:
            yield user


def _unit(ends: Collection[fx.Node], target: fx.Node, layers: Sequence[str]) -> Unit:
    """Return the unit from the ends of others (or the input) to ``target``."""
    _, met = _between(ends, target)
    *beside, source = (end.name for end in ends if end in met)
    return Unit(source, target.name, tuple(layers), tuple(beside))


def _is_size_among(network: fx.GraphModule) -> MayLiveOn:
    """Return what tells sizes of the input, and what is made of them, which are made anew."""
    values, weightless = values_of(network.graph), _weightless(network)
    return lambda value, *_: value in weightless and value not in values


def _weightless(network: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes whose values are made of the input, or of nothing, without weights."""
    found: set[fx.Node] = set()
    for node in network.graph.nodes:
        layer = layer_of(node, network)
        plain = layer is None or next(layer.parameters(), None) is None
        if plain and found.issuperset(node.all_input_nodes):
            found.add(node)
    return found


class _MayLiveOn:
    """Tells whether a value may still be needed behind the end of a unit.

    What is made of the input without weights is made anew. What a unit puts out is kept where it
    belongs to the timestep alone, or waits for a concatenation.
    """

    def __init__(self, network: fx.GraphModule) -> None:
        self._of_time = of_timestep_alone(network.graph)
        self._places = {node: i for i, node in enumerate(network.graph.nodes)}
        self._weightless = _weightless(network)

    def __call__(self, value: fx.Node, end: fx.Node, ends: Collection[fx.Node]) -> bool:
        if value in self._weightless:
            return True
        later = [user for user in value.users if self._places[user] > self._places[end]]
        waits = all(calls(user, CONCATENATIONS) for user in later)
        return value in ends and (value in self._of_time or waits)


def _is_followed(node: fx.Node, network: fx.GraphModule) -> bool:
    """Return whether the chain of a layer, its BatchNorm and its activation goes on behind."""
    return len(node.users) == 1 and _belongs(node, next(iter(node.users)), network)


def _live_values(
    nodes: Sequence[fx.Node], result: fx.Node
) -> Iterator[tuple[fx.Node, set[fx.Node]]]:
    """Yield every node that computes, and the values among these that are needed behind it.

    A unit ends where the value of a node is the only one.

    Args:
        nodes: In order of execution.
        result: The one that is needed in the end.
    """
    place = {node: i for i, node in enumerate(nodes)}
    last_use = {
        node: max((place[user] for user in node.users if user in place), default=-1)
        for node in nodes
    }
    last_use[result] = len(nodes)
    constants = constants_of(nodes)
    live: set[fx.Node] = set()
    for i, node in enumerate(nodes):
        live = {each for each in live if last_use[each] > i}
        if node not in constants:
            live.add(node)
        yield node, live


def _belongs(node: fx.Node, user: fx.Node, network: fx.GraphModule) -> bool:
    """Return whether ``user`` belongs to ``node``: BatchNorm, activation, dropout."""
    layer = layer_of(user, network)
    if isinstance(layer, FOLLOWERS_OF_CONVOLUTIONS):
        return isinstance(layer_of(node, network), CONVOLUTION_LAYERS)
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
    sources = [nodes[name] for name in unit.sources]
    wanted, _ = _between(sources, nodes[unit.target])
    graph = fx.Graph()
    names = ("x", *(f"beside_{i}" for i, _ in enumerate(unit.beside)))
    copies = {node: graph.placeholder(name) for node, name in zip(sources, names, strict=True)}
    for node in network.graph.nodes:
        if node in wanted and node not in copies:
            copies[node] = graph.node_copy(node, lambda each: copies[each])
    graph.output(copies[nodes[unit.target]])
    graph.lint()
    return fx.GraphModule(network, graph)


def parameters_of(
    units: Sequence[Unit], network: fx.GraphModule, student: fx.GraphModule
) -> set[nn.Parameter]:
    """Return the parameters of a student in the layers that its units call.

    Args:
        units: Of the float network.
        network: The float network.
        student: Its layers have the same names; what quantizes activations belongs to none.
    """
    nodes = {node.name: node for node in network.graph.nodes}
    used = {each for unit in units for each in _between((), nodes[unit.target])[0]}
    names = {str(node.target) for node in used if node.op in ("call_module", "get_attr")}
    found = [operator.attrgetter(name)(student) for name in names]
    layers = [each for each in found if isinstance(each, nn.Module)]
    own = {each for each in found if isinstance(each, nn.Parameter)}
    return own.union(*(layer.parameters() for layer in layers))


def _between(
    sources: Collection[fx.Node], target: fx.Node
) -> tuple[Collection[fx.Node], Collection[fx.Node]]:
    """Return the nodes that ``target`` is computed from, and those of ``sources`` that it needs."""
    wanted: set[fx.Node] = set()
    met: set[fx.Node] = set()
    pending = [target]
    while pending:
        node = pending.pop()
        if node in sources:
            met.add(node)
        elif node not in wanted:
            wanted.add(node)
            pending.extend(node.all_input_nodes)
    return wanted, met


def exposed_layers(
    teacher: fx.GraphModule, student: fx.GraphModule
) -> tuple[fx.GraphModule, fx.GraphModule] | None:
    """Return both units with what their layers but the last put out; none of a single layer.

    Source: EDA-DM (Liu et al., arXiv 2401.04585).

    Args:
        teacher: A unit of the float network.
        student: The same unit of the student, whose layers have the same names.
    """
    names = [
        str(node.target)
        for node in teacher.graph.nodes
        if isinstance(layer_of(node, teacher), LAYERS_WITH_PRODUCTS)
    ][:-1]
    if not names:
        return None
    of_teacher, of_student = (
        expose(unit, [node.name for node in _calls_of(unit, names)]) for unit in (teacher, student)
    )
    return of_teacher, of_student


def _calls_of(unit: fx.GraphModule, names: Sequence[str]) -> list[fx.Node]:
    """Return the first calls of layers in their order, as many as there are names."""
    calls = [n for n in unit.graph.nodes if n.op == "call_module" and n.target in set(names)]
    return calls[: len(names)]
