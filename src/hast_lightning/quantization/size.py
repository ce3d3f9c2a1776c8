"""Bytes that a network takes, before and after."""

from __future__ import annotations

import math

from torch import fx, nn

from hast_lightning.quantization.fake_quant import (
    QuantizedLayer,
    activation_quantizers,
    quantized_layers,
)

BYTES_PER_FLOAT = 4
SCALE_AND_ZERO_POINT_BYTES = BYTES_PER_FLOAT + 1
"""A float32 scale and an 8-bit zero point for every range."""

UNTIED = "hast_lightning.untied"
"""In the ``meta`` of a student: weights of layers that the network has as an embedding, too."""


def float_bytes(network: nn.Module) -> int:
    """Return the bytes of all parameters and BatchNorm statistics in float32."""
    tensors = [*network.parameters(), *(b for b in network.buffers() if b.is_floating_point())]
    return BYTES_PER_FLOAT * sum(tensor.numel() for tensor in tensors)


def quantized_bytes(student: nn.Module, float_network_bytes: int) -> int:
    """Return the bytes of the student when its weights are stored in their bits.

    Quantized weights cost ``weight_bits`` each, every channel (or group of weights) and every
    activation tensor a scale and a zero point; all the rest (biases, BatchNorm) stays in float32.

    Args:
        student: A converted network.
        float_network_bytes: :func:`float_bytes` of the network it was converted from.
    """
    layers = [layer for _, layer in quantized_layers(student)]
    # Layers that share their weights have bits and ranges of their own; in floats they are once.
    weights = sum(w.numel() for w in {id(each.weight): each.weight for each in layers}.values())
    packed = sum(
        math.ceil(layer.weight.numel() * layer.weight_quantizer.bits / 8) for layer in layers
    )
    ranges = sum(map(_ranges, layers)) + len(activation_quantizers(student))
    own = student.meta.get(UNTIED, 0) if isinstance(student, fx.GraphModule) else 0
    rest = float_network_bytes - BYTES_PER_FLOAT * (weights - own)
    return rest + packed + SCALE_AND_ZERO_POINT_BYTES * ranges


def _ranges(layer: QuantizedLayer) -> int:
    """Return how many ranges the weights of a layer have."""
    if layer.weight_quantizer.factors is not None:
        return 1
    size = layer.weight_quantizer.group_size
    groups = 1 if size is None else math.ceil(layer.weight.shape[1] / size)
    return layer.weight.shape[0] * groups
