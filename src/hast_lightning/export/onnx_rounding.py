"""Placeholders become QuantizeLinear and DequantizeLinear.

The integers of ONNX have 8 bits, and since opset 21 also 4; grids of other widths use the next
wider type. In ONNX a
zero point is one of the integers, in the student's grids it need not be: where it is not, the
difference is made up exactly.

The four forms, with ``k`` bits, ``n = 2^k - 1`` and the student's scale ``s`` and zero point ``z``:

- symmetric weights: signed integers ``q - 2^(k-1)``, zero point 0;
- other weights: unsigned ``q`` with zero point ``z``; where ``z`` is no integer of the type,
  the nearest one ``z'``, and ``(z' - z) * s`` added to the channel's weights;
- activations whose grid contains zero: QuantizeLinear with ``s`` and ``z``, behind a Clip to the
  grid's ends where the type is wider than the grid;
- other activations: divided by ``s``, rounded, clipped to the grid's ends ``-z`` and ``n - z``
  and shifted by ``z``; then QuantizeLinear of what are integers by now, and all of it back.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from hast_lightning.export.frozen import FrozenActivation, FrozenWeight
from hast_lightning.export.onnx_biases import coarse_layers, layers_with_biases, widened
from hast_lightning.export.onnx_graph import (
    DOMAIN,
    FOUR_BITS_SINCE,
    NAME_ATTRIBUTE,
)

_ONLY_BYTES = ("MaxPool",)
"""Operators that onnxruntime (1.32) moves before a DequantizeLinear although it cannot run them on
integers of 4 bits."""
_KEEP_GRID = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity")
"""Operators that only choose or move values."""


class _Type(NamedTuple):
    """An integer type of ONNX."""

    element: int
    smallest: int
    largest: int


_UNSIGNED = {4: _Type(TensorProto.UINT4, 0, 15), 8: _Type(TensorProto.UINT8, 0, 255)}
_SIGNED = {4: _Type(TensorProto.INT4, -8, 7), 8: _Type(TensorProto.INT8, -128, 127)}


def round_graph(model: onnx.ModelProto, network: nn.Module) -> onnx.ModelProto:
    """Return a copy of ``model`` with the modules of ``network`` in place of placeholders.

    Args:
        model: from :func:`~hast_lightning.export.onnx_graph.graph_with_placeholders`.
        network: with :class:`FrozenWeight` and :class:`FrozenActivation` of the placeholders'
            names.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    (opset,) = (entry for entry in result.opset_import if entry.domain == "")
    _Rounding(result.graph, network, four_bits=opset.version >= FOUR_BITS_SINCE).apply()
    kept = helper.make_opsetid("", opset.version)
    del result.opset_import[:]
    result.opset_import.append(kept)
    onnx.checker.check_model(result, full_check=True)
    return result


class _Rounding:
    """Rewrites one graph; new nodes stand where the placeholders stood.

    Attributes:
        weights: By the value that they are.
        activations: By the value that they put out.
        grids: What rounded the values that are integers to an engine, by these values.
        layers: Those that an engine may compute in integers, by their output.
        coarse: Outputs of those of them that it must not.
    """

    def __init__(self, graph: onnx.GraphProto, network: nn.Module, *, four_bits: bool) -> None:
        self.graph, self.four_bits = graph, four_bits
        self.only_bytes = _inputs_behind(graph, _ONLY_BYTES)
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        modules = {
            node.output[0]: network.get_submodule(_name_in(node))
            for node in graph.node
            if node.domain == DOMAIN
        }
        weights = {v: m for v, m in modules.items() if isinstance(m, FrozenWeight)}
        self.activations = {v: m for v, m in modules.items() if isinstance(m, FrozenActivation)}
        self.grids = self._grids()
        steps = {value: float(grid.scale) for value, grid in self.grids.items()}
        plain = {value: weight for value, weight in weights.items() if self._is_plain(weight)}
        layers = layers_with_biases(graph, plain, steps)
        self.layers = {layer.output: layer for layer in layers}
        self.weights = weights | widened(layers, plain)
        # Fewer bits stand behind a Clip, in front of which nothing is computed in integers.
        ends = {v: float(a.scale) for v, a in self.activations.items() if a.bits == 8}
        self.coarse = coarse_layers(graph, layers, self.weights, ends)

    def _grids(self) -> dict[str, FrozenActivation]:
        grids = {value: a for value, a in self.activations.items() if _has_zero(a)}
        for node in self.graph.node:
            if node.op_type in _KEEP_GRID and node.input[0] in grids:
                grids[node.output[0]] = grids[node.input[0]]
        return grids

    def apply(self) -> None:
        """Rewrite the graph."""
        for node in self.graph.node:
            value = node.output[0]
            if value in self.weights:
                self._weight(_name_in(node), self.weights[value], value)
            elif value in self.activations:
                self._activation(_name_in(node), self.activations[value], node.input[0], value)
            else:
                self._keep(node)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        del self.graph.initializer[:]
        self.graph.initializer.extend(t for name, t in self.initializers.items() if name in used)

    def _width(self, bits: int) -> int:
        """Return the bits of the narrowest integers of the opset that hold ``bits``."""
        return 4 if bits <= 4 and self.four_bits else 8

    # -- Weights -------------------------------------------------------------------------

    def _weight_type(self, weight: FrozenWeight) -> _Type:
        width = self._width(weight.bits)
        return _SIGNED[width] if weight.symmetric else _UNSIGNED[width]

    def _is_plain(self, weight: FrozenWeight) -> bool:
        """Return whether its zero points are integers of its type, as in a DequantizeLinear."""
        kind, zero_point = self._weight_type(weight), weight.zero_point - _middle(weight)
        inside = (zero_point >= kind.smallest) & (zero_point <= kind.largest)
        # At 1 bit it is one half.
        return bool((inside & (zero_point == zero_point.round())).all())

    def _weight(self, name: str, weight: FrozenWeight, output: str) -> None:
        kind = self._weight_type(weight)
        wanted = weight.zero_point.flatten() - _middle(weight)
        zero_point = wanted.round().clamp(kind.smallest, kind.largest)
        scale, axis = _one_or_all(weight.scale.flatten(), weight)
        zero_point, _ = _one_or_all(zero_point, weight)
        inputs = [
            self._integers(f"{name}.integers", weight.integers.int() - _middle(weight), kind),
            self._floats(f"{name}.scale", scale),
            self._integers(f"{name}.zero_point", zero_point, kind),
        ]
        if self._is_plain(weight):
            self._add("DequantizeLinear", inputs, output, **axis)
            return
        offset = ((zero_point.double() - wanted.double()) * scale.double()).float()
        self._add("DequantizeLinear", inputs, f"{name}.from_zero", **axis)
        shift = self._floats(f"{name}.offset", offset.view(weight.scale.shape))
        self._add("Add", [f"{name}.from_zero", shift], output)

    # -- Activations ---------------------------------------------------------------------

    def _activation(self, name: str, activation: FrozenActivation, x: str, output: str) -> None:
        kind = _UNSIGNED[8 if output in self.only_bytes else self._width(activation.bits)]
        zero_point = float(activation.zero_point)
        ends = torch.tensor([-zero_point, activation.largest - zero_point])
        if not _has_zero(activation):
            self._shifted(name, activation, ends, kind, x, output)
            return
        if activation.bits < 8:
            x = self._clip(f"{name}.clipped", x, ends * activation.scale)
        grid = [
            self._floats(f"{name}.scale", activation.scale),
            self._integers(f"{name}.zero_point", activation.zero_point, kind),
        ]
        self._add("QuantizeLinear", [x, *grid], f"{name}.integers")
        self._add("DequantizeLinear", [f"{name}.integers", *grid], output)

    def _shifted(
        self,
        name: str,
        activation: FrozenActivation,
        ends: Tensor,
        kind: _Type,
        x: str,
        output: str,
    ) -> None:
        scale = self._floats(f"{name}.scale", activation.scale)
        lowest = self._floats(f"{name}.lowest", ends[0])
        grid = [
            self._floats(f"{name}.one", torch.ones(())),
            self._integers(f"{name}.zero", torch.zeros(()), kind),
        ]
        self._add("Div", [x, scale], f"{name}.steps")
        self._add("Round", [f"{name}.steps"], f"{name}.whole_steps")
        self._clip(f"{name}.clipped", f"{name}.whole_steps", ends)
        self._add("Sub", [f"{name}.clipped", lowest], f"{name}.shifted")
        self._add("QuantizeLinear", [f"{name}.shifted", *grid], f"{name}.integers")
        self._add("DequantizeLinear", [f"{name}.integers", *grid], f"{name}.from_lowest")
        self._add("Add", [f"{name}.from_lowest", lowest], f"{name}.rounded")
        self._add("Mul", [f"{name}.rounded", scale], output)

    def _clip(self, name: str, x: str, ends: Tensor) -> str:
        low, high = (
            self._floats(f"{name}.{end}", value)
            for end, value in zip(("low", "high"), ends, strict=True)
        )
        # Not Clip: in front of a QuantizeLinear to 4 bits onnxruntime (1.32) fails on that, and
        # forgets a Relu there: so there always is something else.
        self._add("Max", [x, low], f"{name}.from_below")
        self._add("Min", [f"{name}.from_below", high], name)
        return name

    # -- Layers --------------------------------------------------------------------------

    def _keep(self, node: onnx.NodeProto) -> None:
        kept = onnx.NodeProto()
        kept.CopyFrom(node)
        if node.output[0] in self.coarse:
            kept.input[0] = self._in_floating_point(node)
        elif (bias := self._integer_bias(node)) is not None:
            kept.input[2] = bias
        self.nodes.append(kept)

    def _in_floating_point(self, node: onnx.NodeProto) -> str:
        """Return what the layer takes in, as a value that is no integers to any engine."""
        name = f"{node.output[0]}.input"
        lowest = self._floats(f"{name}.lowest", torch.tensor(torch.finfo(torch.float32).min))
        self._add("Max", [node.input[0], lowest], name)
        return name

    def _integer_bias(self, node: onnx.NodeProto) -> str | None:
        """Return the bias as engines of integers take it: 32 bits, scales of input times weights.

        None where the layer will not be one of integers: without all 8 bits engines compute in
        floating point, where a rounded bias would only cost.
        """
        layer = self.layers.get(node.output[0])
        if layer is None or self.grids[node.input[0]].bits < 8:
            return None
        weight = self.weights[layer.weights]
        if not weight.symmetric or self._width(weight.bits) == 4:
            return None
        integers, scale = layer.integers(weight)
        scale, axis = _one_or_all(scale, weight)
        name = f"{node.output[0]}.bias"
        inputs = [
            self._constant(f"{name}.integers", integers.numpy().astype(np.int32)),
            self._floats(f"{name}.scale", scale),
        ]
        self._add("DequantizeLinear", inputs, name, **axis)
        return name

    # -- Nodes and constants -------------------------------------------------------------

    def _add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        self.nodes.append(
            helper.make_node(
                operator, list(inputs), [output], name=f"{output}.{operator}", **attributes
            )
        )

    def _constant(self, name: str, value: np.ndarray[Any, Any]) -> str:
        self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def _floats(self, name: str, value: Tensor) -> str:
        return self._constant(name, value.float().numpy())

    def _integers(self, name: str, value: Tensor, kind: _Type) -> str:
        array = value.to(torch.int16).numpy().astype(helper.tensor_dtype_to_np_dtype(kind.element))
        return self._constant(name, array)


def _name_in(placeholder: onnx.NodeProto) -> str:
    (attribute,) = placeholder.attribute
    assert attribute.name == NAME_ATTRIBUTE
    return str(attribute.s.decode())


def _one_or_all(values: Tensor, weight: FrozenWeight) -> tuple[Tensor, dict[str, int]]:
    """Return a value for each channel, (out_channels,), as a DequantizeLinear takes them.

    Those of a layer with one scale are a scalar, for engines that know no other form.
    """
    return (values[0], {}) if weight.per_tensor else (values, {"axis": 0})


def _middle(weight: FrozenWeight) -> int:
    """Return what to subtract from integers so that their type has signs or has none."""
    return int(2 ** (weight.bits - 1)) if weight.symmetric else 0


def _has_zero(activation: FrozenActivation) -> bool:
    return 0 <= float(activation.zero_point) <= activation.largest


def _inputs_behind(graph: onnx.GraphProto, operators: Collection[str]) -> set[str]:
    """Return the values that reach one of ``operators`` through what only moves them."""
    found: set[str] = set()
    for node in reversed(graph.node):
        passed_on = node.op_type in _KEEP_GRID and node.output[0] in found
        if node.op_type in operators or passed_on:
            found.add(node.input[0])
    return found
