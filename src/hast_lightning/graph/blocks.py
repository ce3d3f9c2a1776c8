"""Feature taps: the nodes of a network's graph at which teacher and student are aligned.

HAST (Li et al., CVPR 2023) aligns features at every block: at the residual body before the
addition, at the BatchNorm of the pointwise convolution of a depthwise-separable block, and at
the projection convolution of an inverted residual. Here the blocks are found in the graph, so
that a network needs no list of names. A plain network has none, and is aligned at the last
activation of each resolution.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from weakref import WeakSet

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from hast_lightning.core.network import Network
from hast_lightning.errors import ModelError
from hast_lightning.graph.operations import (
    ADDITIONS,
    BATCH_NORMS,
    CONVOLUTIONS,
    IDENTITIES,
    calls,
    is_activation,
    is_depthwise,
    is_pointwise,
    is_stochastic_depth,
    layer_of,
)

_log = logging.getLogger(__name__)
_told: WeakSet[nn.Module] = WeakSet()
"""Networks that it was said of, once each, that they have no blocks."""

_PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_POOLS_TO_VECTORS = (
    *(nn.Flatten, nn.Linear, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
_VECTORS = (
    *(torch.flatten, torch.mean, torch.amax, torch.sum),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d, F.linear),
    *("flatten", "mean", "amax", "sum"),
)
_POOLS = (
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool2d),
    *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.lp_pool1d, F.lp_pool2d),
)
_RESIZING_LAYERS = (nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle)
_RESIZING_FUNCTIONS = (F.interpolate, F.pixel_shuffle, F.pixel_unshuffle)
_IDENTITY_FUNCTIONS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)


def select_taps(graph_module: fx.GraphModule, patterns: Sequence[str] | None) -> list[str]:
    """Names of the nodes to align, in order of execution.

    Args:
        graph_module: the network's graph.
        patterns: shell-style patterns of node names or of dotted layer names; none: the ends of
            blocks that :func:`find_taps` finds, or else :func:`last_activations`, which may be
            none at all.

    Raises:
        ModelError: a pattern matches nothing.
    """
    if patterns is None:
        return find_taps(graph_module) or last_activations(graph_module)
    chosen: set[str] = set()
    for pattern in patterns:
        matching = nodes_called(graph_module, pattern)
        if not matching:
            raise ModelError(_describe_unmatched(pattern, list(_names(graph_module).values())))
        chosen |= matching
    return [node.name for node in graph_module.graph.nodes if node.name in chosen]


def nodes_called(graph_module: fx.GraphModule, pattern: str) -> set[str]:
    """Return the names of the nodes that a shell-style pattern matches.

    Args:
        graph_module: the network's graph.
        pattern: of names of nodes, or of dotted names of layers.
    """
    names = _names(graph_module).items()
    return {node for node, layer in names if any(fnmatchcase(n, pattern) for n in (node, layer))}


def _names(graph_module: fx.GraphModule) -> dict[str, str]:
    """Return the dotted name of the layer that each node calls, or else its own, by its name."""
    return {
        node.name: str(node.target) if node.op == "call_module" else node.name
        for node in graph_module.graph.nodes
        if node.op.startswith("call_")
    }


def require_taps(network: Network, term: str) -> tuple[str, ...]:
    """Return the names of the nodes that a term aligns, in order of execution; at least one.

    Raises:
        ModelError: no block was found, or a pattern of ``model.taps`` matches nothing.
    """
    taps = select_taps(network.graph_module, network.pretrained.taps)
    if not taps:
        raise ModelError(
            "no feature taps were found in the network (no residual additions, "
            f"depthwise-separable blocks or activations of maps), which the term {term} needs: "
            "name them with model.taps, or switch the term off (enabled=false)"
        )
    _say_where(network, taps)
    return tuple(taps)


def _say_where(network: Network, taps: Sequence[str]) -> None:
    """Warn, once for each network, of places that are no ends of blocks."""
    pretrained = network.pretrained
    if pretrained.taps is not None or pretrained.network in _told:
        return
    if not find_taps(network.graph_module):
        _told.add(pretrained.network)
        _log.warning(
            "%s has no residual or depthwise-separable blocks: its features are aligned at the "
            "last activation of each resolution, %s (model.taps names other places)",
            pretrained.name,
            ", ".join(taps),
        )


def _describe_unmatched(pattern: str, names: Sequence[str]) -> str:
    some = ", ".join(names[:: max(1, len(names) // 6)][:6])
    return f"model.taps: {pattern!r} matches nothing in the network; some of its names: {some}"


def find_taps(graph_module: fx.GraphModule) -> list[str]:
    """Names of the nodes that end a block, in order of execution; empty where there is none.

    The residual bodies of additions and the pointwise ends of depthwise-separable blocks, each
    once (ResNet-20: the 9 second BatchNorms of its blocks; MobileNetV2: the 17 BatchNorms of its
    projections). The sources are the places that HAST's released code hooks.
    """
    ends = _residual_bodies(graph_module) | _pointwise_ends(graph_module)
    return [node.name for node in graph_module.graph.nodes if node in ends]


def last_activations(graph_module: fx.GraphModule) -> list[str]:
    """Names of the last activation of each resolution, in order of execution.

    A resolution ends where a layer or function has a stride, or changes the size of the maps.
    What convolutions without padding take off the edges is no other resolution.
    """
    resolutions: dict[fx.Node, int | None] = {}
    last: dict[int, fx.Node] = {}
    for node in graph_module.graph.nodes:
        resolution = _resolution(node, resolutions, graph_module)
        if node.op != "get_attr":
            resolutions[node] = resolution
        if resolution is not None and is_activation(node, graph_module):
            last[resolution] = node
    nodes = set(last.values())
    return [node.name for node in graph_module.graph.nodes if node in nodes]


def _resolution(
    node: fx.Node, resolutions: dict[fx.Node, int | None], graph_module: fx.GraphModule
) -> int | None:
    """Return how many changes of size a value has behind it; None where it is no longer maps."""
    if node.op == "placeholder":
        return 0
    given = [resolutions.get(source) for source in node.all_input_nodes]
    # A gate of one number per channel takes nothing away from the maps that it scales.
    counts = [count for count in given if count is not None]
    layer = layer_of(node, graph_module)
    if not counts or isinstance(layer, _POOLS_TO_VECTORS) or calls(node, _VECTORS):
        return None
    return max(counts) + _changes_size(node, layer)


def _changes_size(node: fx.Node, layer: nn.Module | None) -> bool:
    if isinstance(layer, _RESIZING_LAYERS) or calls(node, _RESIZING_FUNCTIONS):
        return True
    # A function's own stride is that of its window.
    stride = getattr(layer, "stride", 1)
    if calls(node, _POOLS):
        window = node.args[1] if len(node.args) > 1 else node.kwargs.get("kernel_size")
        named = node.kwargs.get("stride") or window
        stride = node.args[2] if len(node.args) > 2 and node.args[2] else named
    elif calls(node, CONVOLUTIONS):
        stride = node.args[3] if len(node.args) > 3 else node.kwargs.get("stride", 1)
    return any(step != 1 for step in (stride if isinstance(stride, Sequence) else [stride]))


def _residual_bodies(graph_module: fx.GraphModule) -> set[fx.Node]:
    """At each addition, the operand with more convolutions since the two parted."""
    ancestors = _ancestors(graph_module.graph)
    bodies = set()
    for node in graph_module.graph.nodes:
        operands = _operands(node) if calls(node, ADDITIONS) else []
        if len(operands) != 2:
            continue
        left, right = ({operand} | ancestors[operand] for operand in operands)
        # Without a common ancestor one of the two is a constant, such as a position encoding.
        if not left & right:
            continue
        counts = [_count_convolutions(own, graph_module) for own in (left - right, right - left)]
        if counts[0] != counts[1]:
            body = operands[0] if counts[0] > counts[1] else operands[1]
            bodies.add(_skip_identities(body, graph_module))
    return bodies


def _ancestors(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    """For each node, all nodes that its value depends on."""
    ancestors: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.nodes:
        sources = node.all_input_nodes
        ancestors[node] = set(sources).union(*(ancestors[source] for source in sources))
    return ancestors


def _operands(node: fx.Node) -> list[fx.Node]:
    """The operands of a binary operation that are values of the graph."""
    given = [*node.args[:2], node.kwargs.get("input"), node.kwargs.get("other")]
    return [operand for operand in given if isinstance(operand, fx.Node)]


def _count_convolutions(nodes: Iterable[fx.Node], graph_module: fx.GraphModule) -> int:
    return sum(
        isinstance(layer_of(node, graph_module), _ConvNd) or calls(node, CONVOLUTIONS)
        for node in nodes
    )


def _skip_identities(node: fx.Node, graph_module: fx.GraphModule) -> fx.Node:
    """Back over what does nothing in evaluation mode, so that a block ends in one place."""
    while _is_identity(node, layer_of(node, graph_module)):
        node = node.all_input_nodes[0]
    return node


def _is_identity(node: fx.Node, layer: nn.Module | None) -> bool:
    """Whether a node does nothing in evaluation mode."""
    dropped = isinstance(layer, IDENTITIES) or is_stochastic_depth(node, layer)
    return dropped or calls(node, _IDENTITY_FUNCTIONS)


def _pointwise_ends(graph_module: fx.GraphModule) -> set[fx.Node]:
    """The BatchNorm (or else the convolution) that ends each depthwise-separable block."""
    ends = set()
    for node in graph_module.graph.nodes:
        layer = layer_of(node, graph_module)
        if is_pointwise(layer) and is_fed_by_depthwise(node, graph_module):
            followers = [
                user for user in node.users if isinstance(layer_of(user, graph_module), BATCH_NORMS)
            ]
            ends.add(followers[0] if followers else node)
    return ends


def is_fed_by_depthwise(node: fx.Node, graph_module: fx.GraphModule) -> bool:
    """Return whether a depthwise convolution comes before, at most element-wise layers between.

    Products are looked through as well: squeeze-and-excitation scales the channels there.
    """
    for source in node.all_input_nodes:
        layer = layer_of(source, graph_module)
        if is_depthwise(layer):
            return True
        passes = isinstance(layer, BATCH_NORMS) or _is_identity(source, layer)
        passes = passes or is_activation(source, graph_module) or calls(source, _PRODUCTS)
        if passes and is_fed_by_depthwise(source, graph_module):
            return True
    return False
