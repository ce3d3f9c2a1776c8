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
from hast_lightning.export.onnx_graph import (
    DOMAIN,
    FOUR_BITS_SINCE,
    NAME_ATTRIBUTE,
    WEIGHT_OPERATOR,
)

LARGEST_BIAS = 2**30
"""Of a bias as an integer: the sum of products, at most 2^30 too, is added to it in 32 bits."""
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
    """A copy of ``model`` in which the modules of ``network`` take the place of placeholders.

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
    """Rewrites one graph; new nodes stand where the placeholders stood."""

    def __init__(self, graph: onnx.GraphProto, network: nn.Module, *, four_bits: bool) -> None:
        self.graph, self.network, self.four_bits = graph, network, four_bits
        self.only_bytes = _inputs_behind(graph, _ONLY_BYTES)
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, FrozenWeight] = {}
        self.steps: dict[str, float] = {}
        """Scales of values with which engines compute in integers: of all 8 bits, with zero on the
        grid. Layers behind others run in floating point, where a rounded bias would only cost."""

    def apply(self) -> None:
        """Rewrite the graph."""
        for node in self.graph.node:
            if node.domain != DOMAIN:
                self._keep(node)
                continue
            name = node.attribute[0].s.decode()
            assert node.attribute[0].name == NAME_ATTRIBUTE
            module = self.network.get_submodule(name)
            if node.op_type == WEIGHT_OPERATOR:
                assert isinstance(module, FrozenWeight)
                self._weight(name, module, node.output[0])
            else:
                assert isinstance(module, FrozenActivation)
                self._activation(name, module, node.input[0], node.output[0])
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        del self.graph.initializer[:]
        self.graph.initializer.extend(t for name, t in self.initializers.items() if name in used)

    def _width(self, bits: int) -> int:
        """Bits of the narrowest integers of the opset that hold ``bits``."""
        return 4 if bits <= 4 and self.four_bits else 8

    # -- Weights -------------------------------------------------------------------------

    def _weight(self, name: str, weight: FrozenWeight, output: str) -> None:
        width = self._width(weight.bits)
        kind = _SIGNED[width] if weight.symmetric else _UNSIGNED[width]
        middle = 2 ** (weight.bits - 1) if weight.symmetric else 0
        wanted = weight.zero_point.flatten() - middle
        zero_point = wanted.clamp(kind.smallest, kind.largest)
        scale = weight.scale.flatten()
        inputs = [
            self._integers(f"{name}.integers", weight.integers.int() - middle, kind),
            self._floats(f"{name}.scale", scale),
            self._integers(f"{name}.zero_point", zero_point, kind),
        ]
        self.weights[output] = weight
        if torch.equal(zero_point, wanted):
            self._add("DequantizeLinear", inputs, output, axis=0)
            return
        offset = ((zero_point.double() - wanted.double()) * scale.double()).float()
        self._add("DequantizeLinear", inputs, f"{name}.from_zero", axis=0)
        shift = self._floats(f"{name}.offset", offset.view(weight.scale.shape))
        self._add("Add", [f"{name}.from_zero", shift], output)

    # -- Activations ---------------------------------------------------------------------

    def _activation(self, name: str, activation: FrozenActivation, x: str, output: str) -> None:
        width = 8 if output in self.only_bytes else self._width(activation.bits)
        kind = _UNSIGNED[width]
        scale, zero_point = float(activation.scale), float(activation.zero_point)
        largest = 2**activation.bits - 1
        ends = torch.tensor([-zero_point, largest - zero_point])
        if not 0 <= zero_point <= largest:
            self._shifted(name, activation, ends, kind, x, output)
            return
        clipped = width == 4 or largest < kind.largest
        if clipped:
            x = self._clip(f"{name}.clipped", x, ends * activation.scale)
        grid = [
            self._floats(f"{name}.scale", activation.scale),
            self._integers(f"{name}.zero_point", activation.zero_point, kind),
        ]
        self._add("QuantizeLinear", [x, *grid], f"{name}.integers")
        self._add("DequantizeLinear", [f"{name}.integers", *grid], output)
        if not clipped:
            self.steps[output] = scale

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

    # -- Biases --------------------------------------------------------------------------

    def _keep(self, node: onnx.NodeProto) -> None:
        kept = onnx.NodeProto()
        kept.CopyFrom(node)
        if node.op_type in _KEEP_GRID and node.input[0] in self.steps:
            self.steps[node.output[0]] = self.steps[node.input[0]]
        bias = self._integer_bias(kept) if kept.op_type in ("Conv", "Gemm") else None
        if bias is not None:
            kept.input[2] = bias
        self.nodes.append(kept)

    def _integer_bias(self, node: onnx.NodeProto) -> str | None:
        """The bias as engines of integers take it: 32 bits, scale of the input times the weight.

        None where the layer will not be one of integers, or the bias has no such form.
        """
        step, weight = self.steps.get(node.input[0]), self.weights.get(node.input[1])
        if step is None or weight is None or len(node.input) < 3 or not weight.symmetric:
            return None
        if self._width(weight.bits) == 4 or node.input[2] not in self.initializers:
            return None
        scale = weight.scale.flatten() * float(np.float32(step))
        bias = torch.from_numpy(numpy_helper.to_array(self.initializers[node.input[2]]).copy())
        integers = torch.round(bias.double() / scale.double())
        if bias.shape != scale.shape or not bool((integers.abs() < LARGEST_BIAS).all()):
            return None
        name = f"{node.output[0]}.bias"
        inputs = [
            self._constant(f"{name}.integers", integers.numpy().astype(np.int32)),
            self._floats(f"{name}.scale", scale),
        ]
        self._add("DequantizeLinear", inputs, name, axis=0)
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


def _inputs_behind(graph: onnx.GraphProto, operators: Collection[str]) -> set[str]:
    """Values that reach one of ``operators`` through what only moves them."""
    found: set[str] = set()
    for node in reversed(graph.node):
        passed_on = node.op_type in _KEEP_GRID and node.output[0] in found
        if node.op_type in operators or passed_on:
            found.add(node.input[0])
    return found
