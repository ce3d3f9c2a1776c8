"""Functions that use weights, such as ``F.conv2d(x, self.weight)``, as layers of ``torch.nn``.

Layers of a library's own, such as timm's BatchNorm with an activation inside or its
convolutions with TensorFlow's padding, are taken apart when a network is traced, down to
functions whose weights are parameters of the graph. Nothing after this knows about them: it
meets ``nn.Conv2d``, ``nn.Linear`` and ``nn.BatchNorm2d``, and those of other dimensions.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from hast_lightning.graph.operations import (
    BATCH_NORMS,
    CONVOLUTION_LAYERS,
    TRANSPOSED_LAYERS,
    constants_of,
)

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = (*_CONVOLUTION[:5], "output_padding", "groups", "dilation")
_LINEAR = ("input", "weight", "bias")
_LAYER_NORM = ("input", "normalized_shape", "weight", "bias", "eps")
_STATISTICS = ("running_mean", "running_var")
_SETTINGS = ("training", "momentum", "eps")
_ARGUMENTS: dict[Any, tuple[str, ...]] = {
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _CONVOLUTION),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _TRANSPOSED),
    F.linear: _LINEAR,
    F.layer_norm: _LAYER_NORM,
    F.batch_norm: ("input", *_STATISTICS, "weight", "bias", *_SETTINGS),
    torch.batch_norm: ("input", "weight", "bias", *_STATISTICS, *_SETTINGS, "cudnn_enabled"),
}
_TENSORS = ("weight", "bias", *_STATISTICS)
_SIDES_OF_ASSERTIONS = (
    *(getattr, operator.getitem, operator.eq, operator.ne, operator.lt, operator.le),
    *(operator.gt, operator.ge, operator.and_, operator.or_, operator.mod, "size", "dim"),
)


def functions_to_layers(graph_module: fx.GraphModule, images: Tensor) -> bool:
    """Replace convolutions, linear maps and BatchNorms that are functions by layers.

    Replaced where their weights depend on parameters alone; what such weights are computed
    from (weight standardization, for example) is computed once. A layer takes the place and
    the parameters of the module that held its weights. Assertions are dropped.

    Args:
        graph_module: changed in place.
        images: (N, C, H, W), to see how many dimensions a BatchNorm gets.

    Returns:
        Whether anything was changed.
    """
    asserted = _erase_assertions(graph_module.graph)
    constants = constants_of(graph_module.graph.nodes)
    layers = _find_layers(graph_module, constants, images)
    places = _Places(graph_module)
    for node, layer in layers.items():
        name = places.reserve(_owner(node), layer, node.name)
        inputs = (_arguments(node) or {})["input"]
        with node.graph.inserting_before(node):
            # Not call_module(), which looks for the layer that is put in its place below.
            call = node.graph.create_node("call_module", name, (inputs,))
        node.replace_all_uses_with(call)
        node.graph.erase_node(node)
    _erase_unused(graph_module.graph, constants)
    places.settle()
    graph_module.graph.lint()
    graph_module.recompile()
    return bool(layers) or asserted


def _erase_assertions(graph: fx.Graph) -> bool:
    """Drop assertions, which hold for every input of this size or for none."""
    assertions = [node for node in graph.nodes if node.target is torch._assert]
    for node in assertions:
        graph.erase_node(node)
    # What was compared, and what the messages show: more users than a value really has.
    for node in reversed(graph.nodes):
        if not node.users and node.target in _SIDES_OF_ASSERTIONS:
            graph.erase_node(node)
    return bool(assertions)


def _erase_unused(graph: fx.Graph, constants: set[fx.Node]) -> None:
    for node in reversed(graph.nodes):
        if node in constants and not node.users:
            graph.erase_node(node)


def _find_layers(
    graph_module: fx.GraphModule, constants: set[fx.Node], images: Tensor
) -> dict[fx.Node, nn.Module]:
    """The layer for each node that is to be replaced."""
    found = {}
    dimensions: dict[fx.Node, int] | None = None
    for node in graph_module.graph.nodes:
        arguments = _arguments(node)
        if arguments is None or not _is_layer(arguments, constants):
            continue
        tensors = {key: _value(arguments.get(key), graph_module) for key in _TENSORS}
        if "training" in arguments and dimensions is None:
            dimensions = _dimensions(graph_module, images)
        layer = _build(node.target, arguments, tensors, (dimensions or {}).get(node, 4))
        if layer is not None:
            found[node] = layer.eval()
    return found


def _arguments(node: fx.Node) -> dict[str, Any] | None:
    if node.op != "call_function" or node.target not in _ARGUMENTS:
        return None
    names = _ARGUMENTS[node.target]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    if "running_mean" in names:
        given.setdefault("training", False)
    return given


def _is_layer(arguments: dict[str, Any], constants: set[fx.Node]) -> bool:
    """Return whether only the input depends on the image."""
    others = [value for key, value in arguments.items() if key != "input"]
    nodes = [value for value in others if isinstance(value, fx.Node)]
    tensors = [arguments.get(key) for key in _TENSORS]
    fed = isinstance(arguments.get("input"), fx.Node) and arguments["input"] not in constants
    return fed and constants.issuperset(nodes) and all(node in tensors for node in nodes)


def _value(node: Any, graph_module: fx.GraphModule) -> Tensor | None:
    """Return the value of a constant node: the parameter itself, or the result of computing it."""
    if node is None:
        return None
    with torch.no_grad():
        value: Tensor = _compute(node, graph_module)
    return value


def _compute(node: fx.Node, graph_module: fx.GraphModule) -> Any:
    if node.op == "get_attr":
        return operator.attrgetter(str(node.target))(graph_module)
    args = fx.node.map_arg(node.args, lambda other: _compute(other, graph_module))
    kwargs = fx.node.map_arg(node.kwargs, lambda other: _compute(other, graph_module))
    if node.op == "call_module":
        return graph_module.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _dimensions(graph_module: fx.GraphModule, images: Tensor) -> dict[fx.Node, int]:
    """Return the number of dimensions of each node's value."""
    with torch.no_grad():
        ShapeProp(graph_module).propagate(images)
    metas = {node: node.meta.get("tensor_meta") for node in graph_module.graph.nodes}
    return {node: len(meta.shape) for node, meta in metas.items() if hasattr(meta, "shape")}


def _build(
    function: Any, arguments: dict[str, Any], tensors: dict[str, Tensor | None], dimensions: int
) -> nn.Module | None:
    """The layer that does what ``function`` does; none where there is no such layer."""
    layer: nn.Module | None
    if _ARGUMENTS[function] in (_CONVOLUTION, _TRANSPOSED):
        layer = _convolution(arguments, tensors, transposed=_ARGUMENTS[function] is _TRANSPOSED)
    elif function is F.linear:
        layer = _linear(tensors)
    elif function is F.layer_norm:
        layer = _layer_norm(arguments, tensors)
    else:
        layer = _batch_norm(arguments, tensors, dimensions)
    if layer is None:
        return None
    for name in ("weight", "bias"):
        value = tensors[name]
        kept = value is None or isinstance(value, nn.Parameter)
        layer.register_parameter(name, value if kept else nn.Parameter(value))  # type: ignore[arg-type]
    return layer


def _convolution(
    arguments: dict[str, Any], tensors: dict[str, Tensor | None], *, transposed: bool
) -> nn.Module | None:
    weight, groups = tensors["weight"], arguments.get("groups", 1)
    if weight is None or not 3 <= weight.dim() <= 5:
        return None
    names = _TRANSPOSED if transposed else _CONVOLUTION
    options = {key: arguments[key] for key in names[3:] if key in arguments}
    kinds: Any = TRANSPOSED_LAYERS if transposed else CONVOLUTION_LAYERS
    kind = kinds[weight.dim() - 3]
    channels = (weight.shape[1] * groups, weight.shape[0])[:: -1 if transposed else 1]
    bias = tensors["bias"] is not None
    layer: nn.Module = kind(*channels, weight.shape[2:], bias=bias, device="meta", **options)
    return layer


def _linear(tensors: dict[str, Tensor | None]) -> nn.Module | None:
    weight = tensors["weight"]
    if weight is None or weight.dim() != 2:
        return None
    return nn.Linear(weight.shape[1], weight.shape[0], tensors["bias"] is not None, device="meta")


def _layer_norm(arguments: dict[str, Any], tensors: dict[str, Tensor | None]) -> nn.Module | None:
    shape = arguments["normalized_shape"]
    if tensors["weight"] is None or not all(isinstance(size, int) for size in shape):
        return None
    has_bias = tensors["bias"] is not None
    return nn.LayerNorm(list(shape), arguments.get("eps", 1e-5), bias=has_bias, device="meta")


def _batch_norm(
    arguments: dict[str, Any], tensors: dict[str, Tensor | None], dimensions: int
) -> nn.Module | None:
    mean, var = tensors["running_mean"], tensors["running_var"]
    if arguments["training"] or mean is None or var is None or dimensions > 5:
        return None
    kind: Callable[..., nn.Module] = BATCH_NORMS[max(dimensions - 3, 0)]
    affine = tensors["weight"] is not None or tensors["bias"] is not None
    if affine and tensors["weight"] is None:  # a layer has none of both, or its weight
        tensors["weight"] = torch.ones_like(mean)
    eps, momentum = arguments.get("eps", 1e-5), arguments.get("momentum", 0.1)
    layer = kind(len(mean), eps, momentum, affine)
    layer.register_buffer("running_mean", mean)
    layer.register_buffer("running_var", var)
    return layer


def _owner(node: fx.Node) -> str:
    """The path of the module that holds the weights; "" for the network itself."""
    arguments = _arguments(node) or {}
    sources = [arguments.get(key) for key in _TENSORS]
    for source in sources:
        while isinstance(source, fx.Node):
            if source.op == "get_attr":
                return str(source.target).rpartition(".")[0]
            source = next(iter(source.all_input_nodes), None)
    return ""


class _Places:
    """Names for the new layers, and the modules that have to make room for them."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        self._graph_module = graph_module
        self._layers: dict[str, nn.Module] = {}

    def reserve(self, owner: str, layer: nn.Module, fallback: str) -> str:
        """Return the name for ``layer``: its owner's where that is free, which keeps all names."""
        for name, other in self._layers.items():
            if _are_same(layer, other):
                return name
        called = {
            str(node.target) for node in self._graph_module.graph.nodes if node.op == "call_module"
        }
        name = owner
        while not name or name in called or name in self._layers:
            name = f"{name}_{fallback}" if name else fallback
        self._layers[name] = layer
        return name

    def settle(self) -> None:
        """Put the layers where they belong, once the graph has no other use for their weights."""
        for name, layer in self._layers.items():
            self._move_aside(name)
            self._graph_module.set_submodule(name, layer)

    def _move_aside(self, name: str) -> None:
        """Put what else is used inside of module ``name``, such as an activation, beside it."""
        for node in self._graph_module.graph.nodes:
            if node.op not in ("call_module", "get_attr"):
                continue
            below = str(node.target).removeprefix(f"{name}.")
            if below == node.target:
                continue
            value = operator.attrgetter(str(node.target))(self._graph_module)
            node.target = f"{name}_{below.replace('.', '_')}"
            parent, _, attribute = node.target.rpartition(".")
            setattr(self._graph_module.get_submodule(parent), attribute, value)


def _are_same(layer: nn.Module, other: nn.Module) -> bool:
    """Return whether both have the same settings and the very same tensors."""
    tensors = [{**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (layer, other)]
    for state in tensors:
        state.pop("num_batches_tracked", None)
    same_tensors = tensors[0].keys() == tensors[1].keys() and all(
        tensors[0][key] is tensors[1][key] for key in tensors[0]
    )
    return same_tensors and repr(layer) == repr(other)
