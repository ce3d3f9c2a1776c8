"""Biases of layers that an engine computes in integers.

Whatever form a bias has in the file, such an engine rounds it: to 32 bits, at the scale of the
layer's input times that of the channel's weights (onnxruntime does so wherever both come from a
DequantizeLinear). A channel that its BatchNorm has switched off has next to no scale, so that its
bias would take more than 32 bits, and behind a range that an outlier has stretched a bias may be
less than one integer. Here are the scales at which it is neither, and the layers that have none.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from hast_lightning.export.frozen import FrozenWeight

LARGEST_BIAS = 2**30
"""Largest bias as an integer: the sum of products, at most 2^30 too, is added in 32 bits."""
COARSEST_BIAS = 0.25
"""Largest scale of a bias as an integer, in steps of what the layer puts out: rounding the bias
moves that by an eighth of a step at most."""
SMALLEST_SCALE = 2.0**-100
"""Smallest scale of a bias: far from where float32 has no more digits, or engines see zero."""
LAYERS = ("Conv", "Gemm")
_DONE_WITH_A_LAYER = ("Relu", "Clip", "Identity")
"""Operators that an engine computes in one go with the layer before them."""


class Layer(NamedTuple):
    """A layer that an engine may compute in integers.

    Attributes:
        output: The value that it puts out.
        weights: The value that its weights are.
        step: Scale of its input.
        bias: (out_channels,), float32.
    """

    output: str
    weights: str
    step: float
    bias: Tensor

    def integers(self, weight: FrozenWeight) -> tuple[Tensor, Tensor]:
        """Return the bias as integers and their scales, (out_channels,) each."""
        scale = weight.scale.flatten() * float(np.float32(self.step))
        return torch.round(self.bias.double() / scale.double()), scale


def layers_with_biases(
    graph: onnx.GraphProto, weights: Mapping[str, FrozenWeight], steps: Mapping[str, float]
) -> list[Layer]:
    """Return the layers of a graph that an engine may compute in integers and that have a bias.

    Args:
        graph: Its values are named in the arguments below.
        weights: The values that are weights in integers.
        steps: Scales of the values that are activations in integers.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type not in LAYERS or len(node.input) < 3 or node.input[0] not in steps:
            continue
        if node.input[1] not in weights or node.input[2] not in constants:
            continue
        bias = torch.from_numpy(numpy_helper.to_array(constants[node.input[2]]).copy())
        if bias.shape == (weights[node.input[1]].scale.numel(),):
            found.append(Layer(node.output[0], node.input[1], steps[node.input[0]], bias))
    return found


def widened(
    layers: Collection[Layer], weights: Mapping[str, FrozenWeight]
) -> dict[str, FrozenWeight]:
    """Return weights whose scales are large enough for the biases of all layers.

    What a larger scale rounds away is too little to be seen beside the bias: with ``n`` products
    of 8 bits at most ``n / 2^23`` of it.
    """
    fitted = dict(weights)
    for layer in layers:
        smallest = (layer.bias.double().abs() / LARGEST_BIAS).clamp(min=SMALLEST_SCALE)
        fitted[layer.weights] = _with_scales(fitted[layer.weights], smallest / layer.step)
    return fitted


@torch.no_grad()
def _with_scales(weight: FrozenWeight, smallest: Tensor) -> FrozenWeight:
    """Return the same weights on a grid of at least these scales, (out_channels,)."""
    scale = weight.scale.double()
    size = scale.abs()
    smallest = smallest.view(scale.shape)
    larger = torch.maximum(size, smallest.amax() if weight.per_tensor else smallest)
    if torch.equal(larger, size):
        return weight
    result = copy.deepcopy(weight)
    result.scale = torch.where(larger > size, larger * scale.sign(), scale).float()
    # Between the integer that there was and the zero point, so that the type holds it.
    steps = (weight.integers.double() - weight.zero_point) * (size / larger)
    result.integers = (steps.round() + weight.zero_point).to(weight.integers.dtype)
    return result


def coarse_layers(
    graph: onnx.GraphProto,
    layers: Collection[Layer],
    weights: Mapping[str, FrozenWeight],
    steps: Mapping[str, float],
) -> set[str]:
    """Return the outputs of layers whose bias would be lost next to the scale of their input.

    Args:
        graph: That of the layers.
        layers: Those that an engine may compute in integers.
        weights: By the values that they are.
        steps: Scales of the values that a layer's output may be rounded to in the same go.
    """
    return {
        layer.output
        for layer in layers
        if float(weights[layer.weights].scale.abs().max()) * layer.step
        > COARSEST_BIAS * min(_steps_behind(layer.output, graph, steps), default=math.inf)
    }


def _steps_behind(
    value: str, graph: onnx.GraphProto, steps: Mapping[str, float]
) -> Iterator[float]:
    """Yield scales that ``value`` is rounded to in one go with the layer that computes it."""
    for node in graph.node:
        if value in node.input and node.op_type in _DONE_WITH_A_LAYER:
            yield from _steps_behind(node.output[0], graph, steps)
        elif value in node.input and node.output[0] in steps:
            yield steps[node.output[0]]
