"""A frozen network as plain data: its graph, and what its layers are constructed with.

So a file can hold a network without the code that built it, and without a pickle. Reading one
constructs nothing but what :mod:`~hast_lightning.export.vocabulary` lists.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from keyword import iskeyword
from typing import Any

import torch
from torch import Tensor, fx, nn

from hast_lightning.errors import ModelError, first_line
from hast_lightning.export.frozen import (
    FROZEN,
    FrozenActivation,
    FrozenLog2,
    FrozenWeight,
)
from hast_lightning.export.vocabulary import (
    ATTRIBUTES,
    DTYPES,
    FUNCTIONS,
    LAYERS,
    METHODS,
    NAMES,
)
from hast_lightning.graph.arguments import arguments_of

_PATH = re.compile(r"[\w-]+(\.[\w-]+)*", re.ASCII)
_FROZEN = {frozen.__name__: (frozen, plain) for plain, frozen in FROZEN.items()}
_ACTIVATION, _LOG2 = "FrozenActivation", "FrozenLog2"
_OPERATIONS = ("placeholder", "get_attr", "call_module", "call_function", "call_method", "output")


def describe(network: fx.GraphModule) -> dict[str, Any]:
    """Return the plain data (dictionaries, lists, numbers, texts) of a network for :func:`build`.

    Raises:
        ModelError: the network has a layer or calls a function that is not in the vocabulary.
    """
    nodes = list(network.graph.nodes)
    layers = {str(node.target) for node in nodes if node.op == "call_module"}
    tensors = {str(node.target) for node in nodes if node.op == "get_attr"}
    return {
        "nodes": [_describe_node(node) for node in nodes],
        "layers": {
            name: _describe_layer(name, network.get_submodule(name)) for name in sorted(layers)
        },
        "tensors": {name: list(_tensor_at(network, name).shape) for name in sorted(tensors)},
        **_types({name: _tensor_at(network, name).dtype for name in sorted(tensors)}),
    }


def _types(dtypes: Mapping[str, torch.dtype]) -> dict[str, Any]:
    """Return what to say of tensors that are not float32; nothing where all are."""
    others = {n: _plain(t)["dtype"] for n, t in dtypes.items() if t != torch.float32}
    return {"types": others} if others else {}


def build(description: Any) -> fx.GraphModule:
    """Return a frozen network on the device ``meta``, without memory until tensors are assigned.

    Raises:
        ModelError: the description is damaged or asks for what is not in the vocabulary.
    """
    try:
        return _build(description)
    except ModelError:
        raise
    # Whatever a constructor or the graph raises about arguments of the wrong kind or number.
    except Exception as error:
        raise ModelError(f"its architecture is damaged: {first_line(error)}") from error


def _build(description: Mapping[str, Any]) -> fx.GraphModule:
    root = nn.Module()
    with torch.device("meta"):
        for name, layer in description["layers"].items():
            _put(root, name, _build_layer(layer))
        for name, shape in description["tensors"].items():
            dtype = DTYPES[description.get("types", {}).get(name, "float32")]
            _put(root, name, torch.zeros(_shape(shape), dtype=dtype))
    graph = fx.Graph()
    built: dict[str, fx.Node] = {}
    for node in description["nodes"]:
        built[node["name"]] = _build_node(graph, node, built)
    graph.lint()
    return fx.GraphModule(root, graph, "Packed").requires_grad_(False).eval()


# -- Layers and tensors ------------------------------------------------------------------


def _describe_layer(name: str, layer: nn.Module) -> dict[str, Any]:
    if isinstance(layer, FrozenActivation):
        return {"kind": _ACTIVATION, "bits": layer.bits}
    if isinstance(layer, FrozenLog2):
        return {"kind": _LOG2, "bits": layer.bits}
    for kind, (frozen, plain) in _FROZEN.items():
        if isinstance(layer, frozen):
            weight = layer.quantized_weight
            assert isinstance(weight, FrozenWeight)
            return {
                "kind": kind,
                "bits": weight.bits,
                "shape": list(weight.integers.shape),
                **({} if weight.group_size is None else {"group_size": weight.group_size}),
                "arguments": _plain(arguments_of(layer, plain)),
            }
    kind = type(layer).__name__
    if LAYERS.get(kind) is not type(layer):
        raise ModelError(
            f"the network's layer {name} is a {kind}, which cannot be stored in a file"
        )
    return {"kind": kind, "arguments": _plain(arguments_of(layer, type(layer)))}


def _build_layer(layer: Mapping[str, Any]) -> nn.Module:
    kind = layer["kind"]
    if kind == _ACTIVATION:
        return FrozenActivation(torch.ones(()), torch.zeros(()), _bits(layer))
    if kind == _LOG2:
        return FrozenLog2(_bits(layer))
    arguments = _from_plain(layer["arguments"], {})
    _require_known(kind, arguments)
    if kind in _FROZEN:
        shape = _shape(layer["shape"])
        size = _group_size(layer, shape)
        groups = 1 if size is None else math.ceil(shape[1] / size)
        grid = torch.zeros(shape[0], groups, *(1,) * (len(shape) - 2))
        integers = torch.zeros(shape, dtype=torch.uint8)
        return _FROZEN[kind][0](
            FrozenWeight(integers, grid, grid.clone(), _bits(layer), size), **arguments
        )
    if kind not in LAYERS:
        raise ModelError(f"its architecture has a layer of the unknown kind {kind!r}")
    return LAYERS[kind](**arguments)


def _require_known(kind: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that this version of torch does not have: a newer one may have written."""
    constructor = _FROZEN[kind][1] if kind in _FROZEN else LAYERS.get(kind)
    if constructor is None:
        return
    unknown = sorted(arguments.keys() - inspect.signature(constructor).parameters.keys())
    if unknown:
        raise ModelError(
            f"its {kind} has the arguments {', '.join(unknown)}, which torch {torch.__version__} "
            "does not know: it was written with a newer torch, or is damaged"
        )


def _bits(layer: Mapping[str, Any]) -> int:
    bits = layer["bits"]
    if not isinstance(bits, int) or not 1 <= bits <= 8:
        raise ModelError(f"its architecture has a layer of {bits!r} bits")
    return bits


def _group_size(layer: Mapping[str, Any], shape: Sequence[int]) -> int | None:
    size = layer.get("group_size")
    if size is not None and not (type(size) is int and size >= 1 and len(shape) == 2):
        raise ModelError(f"its architecture has a layer with groups of {size!r} weights")
    return size


def _shape(values: Sequence[Any]) -> tuple[int, ...]:
    shape = tuple(values)
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ModelError(f"its architecture has a tensor of the shape {shape}")
    return shape


def _put(root: nn.Module, path: str, value: nn.Module | Tensor) -> None:
    """Register ``value`` at a dotted path, through containers that are made on the way."""
    if not _PATH.fullmatch(path):
        raise ModelError(f"its architecture has the name {path!r}")
    *containers, last = path.split(".")
    for name in containers:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    if isinstance(value, nn.Module):
        root.add_module(last, value)
    else:
        root.register_buffer(last, value)


def _tensor_at(network: nn.Module, path: str) -> Tensor:
    module, _, name = path.rpartition(".")
    value = getattr(network.get_submodule(module), name)
    if not isinstance(value, Tensor):
        raise ModelError(f"the network reads {path}, which is no tensor and cannot be stored")
    return value


# -- Nodes -------------------------------------------------------------------------------


def _describe_node(node: fx.Node) -> dict[str, Any]:
    target = str(node.target)
    if node.op == "call_function":
        target = NAMES.get(id(node.target), "")
        if not target:
            name = getattr(node.target, "__name__", str(node.target))
            raise ModelError(f"the network calls {name} at {node.name}: no file can hold that")
    if node.op == "call_method" and target not in METHODS:
        raise ModelError(f"the network calls .{target}() at {node.name}: no file can hold that")
    options = {name: _plain(value) for name, value in node.kwargs.items()}
    return {
        "name": node.name,
        "operation": node.op,
        "target": target,
        "arguments": _plain(list(node.args)),
        **({"options": options} if options else {}),
    }


def _build_node(graph: fx.Graph, node: Mapping[str, Any], built: dict[str, fx.Node]) -> fx.Node:
    operation, target, name = node["operation"], node["target"], node["name"]
    options = {key: _from_plain(value, built) for key, value in node.get("options", {}).items()}
    # Names become Python code when a graph is compiled.
    for text in (name, *options):
        if not isinstance(text, str) or not text.isidentifier() or iskeyword(text):
            raise ModelError(f"its architecture has the name {text!r}")
    arguments = tuple(_from_plain(node["arguments"], built))
    known = {"call_function": FUNCTIONS, "call_method": METHODS}.get(operation)
    if operation not in _OPERATIONS or (known is not None and target not in known):
        raise ModelError(f"its architecture asks for {operation} {target!r}, which is not allowed")
    if known is None and not (isinstance(target, str) and _PATH.fullmatch(target)):
        raise ModelError(f"its architecture has the name {target!r}")
    if target == "getattr" and (len(arguments) != 2 or arguments[1] not in ATTRIBUTES):
        raise ModelError(f"its architecture reads the attribute {arguments[1:]!r}")
    function = FUNCTIONS[target] if operation == "call_function" else target
    return graph.create_node(operation, function, arguments, options, name)


def _plain(value: Any) -> Any:
    """``value`` without anything that JSON has not: each such thing in a dictionary of one key."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_plain(item) for item in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        # An order that a file of sorted keys would lose; what a layer is made with has none.
        if list(value) != sorted(value) and _computed(value):
            return {"items": [[key, _plain(item)] for key, item in value.items()]}
        return {"dict": {key: _plain(item) for key, item in value.items()}}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, slice):
        return {"slice": [_plain(item) for item in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.dtype) and str(value).removeprefix("torch.") in DTYPES:
        return {"dtype": str(value).removeprefix("torch.")}
    if value is Ellipsis:
        return {"ellipsis": None}
    raise ModelError(f"the network's code uses {value!r}, which cannot be stored in a file")


def _computed(value: Any) -> bool:
    """Return whether something in ``value`` is what a network computes."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(_computed(item) for item in value)
    return isinstance(value, fx.Node)


def _from_plain(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    """The inverse of :func:`_plain`."""
    if isinstance(value, list):
        return [_from_plain(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tuple":
        return tuple(_from_plain(item, nodes) for item in content)
    if kind == "dict":
        return {key: _from_plain(item, nodes) for key, item in content.items()}
    if kind == "items":
        return {str(key): _from_plain(item, nodes) for key, item in content}
    if kind == "slice":
        return slice(*(_from_plain(item, nodes) for item in content))
    simple: dict[str, Callable[[Any], Any]] = {
        "node": nodes.__getitem__,
        "float": float,
        "dtype": DTYPES.__getitem__,
    }
    return Ellipsis if kind == "ellipsis" else simple[kind](content)
