"""Effects of quantization, layer by layer: bits, ranges, scales and errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from hast_lightning.graph.names import value_names
from hast_lightning.graph.operations import layer_of
from hast_lightning.quantization.fake_quant import (
    ActivationMode,
    ActivationQuantizer,
    QuantizedLayer,
)
from hast_lightning.quantization.log2 import Log2Quantizer
from hast_lightning.quantization.ranges import AffineParameters

WEIGHT, ACTIVATION = "weight", "activation"


@dataclass(frozen=True)
class LayerDiagnosis:
    """One quantized tensor of a student: the weights of a layer, or an activation.

    Where all weights of a layer share a range, they are meant with the factors of the BatchNorm
    behind them.

    Attributes:
        name: Dotted name of the layer, or of the module whose value is quantized.
        kind: ``weight`` or ``activation``.
        bits: 2 to 8.
        low: Smallest value that can be represented, over all channels; none for an activation
            that was not calibrated yet.
        high: Largest value that can be represented; none as ``low``.
        scale: Step between neighbouring values, of weights the mean over output channels; none
            as ``low``.
        error: ``sum (w - q(w))^2 / sum w^2`` of the weights as they are; none for activations,
            whose values are not kept.
    """

    name: str
    kind: str
    bits: int
    low: float | None
    high: float | None
    scale: float | None
    error: float | None


@torch.no_grad()
def diagnose(student: fx.GraphModule) -> list[LayerDiagnosis]:
    """List every quantized tensor of ``student``, in order of execution, each once.

    Changes nothing and draws no random numbers.

    Args:
        student: A converted network, calibrated or not.
    """
    found: dict[str, LayerDiagnosis] = {}
    names = value_names(student.graph)
    for node in student.graph.nodes:
        layer = layer_of(node, student)
        if isinstance(layer, QuantizedLayer):
            found.setdefault(str(node.target), _of_weights(str(node.target), layer))
        elif isinstance(layer, ActivationQuantizer):
            found[str(node.target)] = _of_activation(names[node.all_input_nodes[0]], layer)
    return list(found.values())


def _of_weights(name: str, layer: QuantizedLayer) -> LayerDiagnosis:
    quantizer, weight = layer.weight_quantizer, layer.weight.float()
    rounded, parameters = quantizer.rounded(weight), quantizer.parameters_of(weight)
    if quantizer.factors is not None:
        parameters = quantizer.shared_parameters(weight)
        weight, rounded = map(quantizer.factors.fold, (weight, rounded))
    low, high = _ends(parameters, quantizer.bits)
    # Of weights that are all zero nothing is lost; dividing by the smallest number says so.
    power = weight.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
    error = (weight - rounded).square().sum() / power
    return LayerDiagnosis(
        name=name,
        kind=WEIGHT,
        bits=quantizer.bits,
        low=float(low.min()),
        high=float(high.max()),
        scale=float(parameters.scale.mean()),
        error=float(error),
    )


def _of_activation(name: str, quantizer: ActivationQuantizer) -> LayerDiagnosis:
    """The range that is quantized with now: while observing, the average so far."""
    if quantizer.mode is ActivationMode.OBSERVE:
        parameters = quantizer.grid.parameters(*quantizer.moving_range.range())
    else:
        parameters = AffineParameters(quantizer.scale, quantizer.zero_point)
    low, high = _ends(parameters, quantizer.bits)
    if isinstance(quantizer, Log2Quantizer):
        # No grid of equal steps: powers of two from 1 down, and zero.
        low, high = torch.zeros_like(low), torch.ones_like(high)
    numbers = (float(low), float(high), float(parameters.scale))
    calibrated = all(map(math.isfinite, numbers))
    low_end, high_end, scale = numbers if calibrated else (None, None, None)
    return LayerDiagnosis(name, ACTIVATION, quantizer.bits, low_end, high_end, scale, None)


def _ends(parameters: AffineParameters, bits: int) -> tuple[Tensor, Tensor]:
    """The lowest and the highest value of the grid of ``0 .. 2^bits - 1``."""
    scale, zero_point = parameters
    return -zero_point * scale, (2**bits - 1 - zero_point) * scale
