"""Operations that overwrite what they are given, made such that they leave it."""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from hast_lightning.graph.operations import (
    ADDITIONS,
    BATCH_NORMS,
    CONVOLUTION_LAYERS,
    TRANSPOSED_LAYERS,
    calls,
    layer_of,
    rearranges,
)

_OPERATORS = {
    getattr(operator, f"i{name}"): getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
}

# What rearranges values may give others a look at them, and so may these, which leave all as it is.
_LOOKS = (
    *("to", "float", "type", "type_as", "view_as", "expand_as", "reshape_as", "broadcast_to"),
    *("t", "swapdims", "moveaxis", "diagonal", "unfold", "squeeze_", "unsqueeze_"),
    *(torch.t, torch.swapdims, torch.moveaxis, torch.diagonal, torch.broadcast_to, torch.select),
    *(torch.ravel, torch.unflatten, torch.atleast_1d, torch.detach, "ravel"),
)
_LOOKING_ATTRIBUTES = ("data", "T", "mT", "H", "mH")

_NEEDING_INPUTS = (*CONVOLUTION_LAYERS, *TRANSPOSED_LAYERS, nn.Linear, *BATCH_NORMS)


def overwrites(node: fx.Node, graph_module: fx.GraphModule) -> bool:
    """Return whether ``node`` overwrites its first argument in place."""
    layer = layer_of(node, graph_module)
    if layer is not None:
        return bool(getattr(layer, "inplace", False))
    # Methods and functions: add_, relu_, iadd, and relu(..., inplace=True).
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    trailing = name.endswith("_") and not name.endswith("__")
    told = any(_place_of_flag(node))
    return node.op.startswith("call_") and (trailing or told or node.target in _OPERATORS)


def is_overwritten(node: fx.Node, graph_module: fx.GraphModule) -> bool:
    """Return whether something behind a node overwrites its value, or memory that it may share."""
    shared, pending = {node}, [node]
    while pending:
        each = pending.pop()
        beside = [user for user in each.users if _may_share(each, user, graph_module)]
        beside += [s for s in each.all_input_nodes if _may_share(s, each, graph_module)]
        pending += [other for other in beside if other not in shared]
        shared.update(beside)
    behind = _after(node)
    return any(each in behind and overwrites(each, graph_module) for each in shared)


def _may_share(source: fx.Node, user: fx.Node, graph_module: fx.GraphModule) -> bool:
    """Return whether what a node puts out may lie in the memory of what it takes in."""
    looks = user.target is getattr and user.args[1] in _LOOKING_ATTRIBUTES
    looks = looks or calls(user, _LOOKS) or rearranges(user, graph_module)
    return user.all_input_nodes[0] is source and (looks or overwrites(user, graph_module))


def out_of_place(graph_module: fx.GraphModule) -> None:
    """Have operations leave what they are given, and later ones take what they put out.

    Where a value is overwritten that shares its memory with another (a slice, say) this may
    compute something else, so it is to be compared.

    Args:
        graph_module: Changed in place, its layers as well.
    """
    for node in list(graph_module.graph.nodes):
        if not overwrites(node, graph_module):
            continue
        sources = node.all_input_nodes
        _leave(node, graph_module)
        if sources:
            later = _after(node)
            sources[0].replace_all_uses_with(node, later.__contains__)
    graph_module.graph.lint()
    graph_module.recompile()


def _after(node: fx.Node) -> set[fx.Node]:
    nodes = list(node.graph.nodes)
    return set(nodes[nodes.index(node) + 1 :])


def _leave(node: fx.Node, graph_module: fx.GraphModule) -> None:
    """Have one operation leave its first argument."""
    layer = layer_of(node, graph_module)
    if layer is not None:
        layer.inplace = False  # type: ignore[assignment]
        return
    in_arguments, in_options = _place_of_flag(node)
    if in_arguments:
        node.args = (*node.args[:in_arguments], False, *node.args[in_arguments + 1 :])
    if in_options:
        node.kwargs = {**node.kwargs, "inplace": False}
    if node.op == "call_method":
        name = str(node.target).removesuffix("_")
        node.target = name if hasattr(Tensor, name) else node.target
    elif node.op == "call_function":
        node.target = _plain(node.target)


def _plain(function: Any) -> Any:
    """Return the function that does the same out of place; itself where it does so already."""
    if function in _OPERATORS:
        return _OPERATORS[function]
    name = str(getattr(function, "__name__", ""))
    if not name.endswith("_"):
        return function
    homes = [home for home in (torch, F) if hasattr(home, name.removesuffix("_"))]
    return getattr(homes[0], name.removesuffix("_")) if homes else function


def _place_of_flag(node: fx.Node) -> tuple[int, bool]:
    """Return at which place, and whether by name, a function is told to work in place."""
    by_name = node.op == "call_function" and bool(node.kwargs.get("inplace", False))
    names = _arguments(node.target) if node.op == "call_function" and len(node.args) > 1 else []
    place = names.index("inplace") if "inplace" in names else 0
    return (place if 0 < place < len(node.args) and node.args[place] else 0), by_name


def _arguments(function: Any) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # written in C
        return []


def _is_usual(node: fx.Node, network: fx.GraphModule) -> bool:
    """Return whether what ``node`` overwrites is needed by nothing, as that of most networks.

    Convolutions, linear layers, BatchNorms and sums need what they take in for their gradients,
    and not what they put out.
    """
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or len(source.users) > 1:
        return False
    return isinstance(layer_of(source, network), _NEEDING_INPUTS) or calls(source, ADDITIONS)


def requires_copies(network: fx.GraphModule, images: Tensor) -> bool:
    """Return whether what ``network`` overwrites is still needed for its gradients.

    The images count as well: they are what is trained in a synthesis.

    Args:
        network: Left as it is.
        images: (N, C, H, W).
    """
    if all(_is_usual(node, network) for node in network.graph.nodes if overwrites(node, network)):
        return False
    inputs = images.clone().requires_grad_()
    trained = [each for each in network.parameters() if each.is_floating_point()]
    frozen = [each for each in trained if not each.requires_grad]
    for parameter in frozen:
        parameter.requires_grad = True
    try:
        with torch.enable_grad():
            outputs: Tensor = network(inputs).sum()
            torch.autograd.grad(outputs, [inputs, *trained], allow_unused=True)
    except RuntimeError as error:
        # Of torch's messages all that concern this say so.
        return "in-place" in str(error) or "inplace" in str(error)
    finally:
        for parameter in frozen:
            parameter.requires_grad = False
    return False
