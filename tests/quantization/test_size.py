"""Sizes in bytes, worked out by hand."""

from __future__ import annotations

import pytest
from torch import nn

from hast_lightning.quantization.fake_quant import (
    ActivationQuantizer,
    QuantConv2d,
    QuantLinear,
    WeightQuantizer,
)
from hast_lightning.quantization.size import float_bytes, quantized_bytes


def float_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 5, 3),  # 135 weights, 5 biases
        nn.BatchNorm2d(5),  # 20 numbers, and a counter that is no float
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5, 7, bias=False),  # 35 weights
    )


def student_of(network: nn.Sequential, bits: int) -> nn.Sequential:
    convolution, norm, relu, flatten, linear = network
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(linear, nn.Linear)
    return nn.Sequential(
        QuantConv2d.from_float(convolution, WeightQuantizer(bits)),
        norm,
        relu,
        ActivationQuantizer(bits),
        flatten,
        QuantLinear.from_float(linear, WeightQuantizer(bits)),
    )


def test_float_bytes_counts_parameters_and_statistics() -> None:
    assert float_bytes(float_network()) == 4 * (135 + 5 + 20 + 35)


@pytest.mark.parametrize(
    ("bits", "packed"), [(2, 34 + 9), (3, 51 + 14), (4, 68 + 18), (5, 85 + 22), (8, 135 + 35)]
)
def test_quantized_bytes_counts_packed_weights_ranges_and_the_rest(bits: int, packed: int) -> None:
    network = float_network()
    size = quantized_bytes(student_of(network, bits), float_bytes(network))
    ranges = 5 + 7 + 1  # two layers' channels and one activation, 5 bytes each
    assert size == 4 * (5 + 20) + packed + 5 * ranges


def test_weights_that_two_layers_share_are_counted_once_in_the_float_network() -> None:
    first, second = nn.Linear(7, 7, bias=False), nn.Linear(7, 7)
    second.weight = first.weight
    network = nn.Sequential(first, nn.ReLU(), second)
    layers = [QuantLinear.from_float(layer, WeightQuantizer(4)) for layer in (first, second)]
    student = nn.Sequential(layers[0], nn.ReLU(), layers[1])
    # Each layer has bits and ranges of its own.
    expected = 4 * 7 + 2 * (25 + 5 * 7)
    assert quantized_bytes(student, float_bytes(network)) == expected
