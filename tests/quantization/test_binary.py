"""Weights of one bit: two values for each channel, never three."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hast_lightning.errors import ConfigurationError
from hast_lightning.export.frozen import freeze
from hast_lightning.quantization.adaround import Adaptive
from hast_lightning.quantization.binary import BinaryWeightQuantizer
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.fake_quant import recalibrate
from hast_lightning.quantization.settings import LayerBits, QuantizerConfig
from hast_lightning.quantization.transformer_placement import Transformer
from tests.transformers import images, network


def test_linear_layers_take_their_mean_off_and_convolutions_do_not() -> None:
    torch.manual_seed(0)
    linear, convolution = torch.randn(4, 6) + 0.5, torch.randn(4, 2, 3, 3) + 0.5
    quantizer = BinaryWeightQuantizer()
    for weight, centre in ((linear, linear.mean(1, keepdim=True)), (convolution, 0)):
        size = weight.abs().flatten(1).mean(1).view(-1, *(1,) * (weight.dim() - 1))
        expected = torch.where(weight - centre >= 0, size, -size)
        torch.testing.assert_close(quantizer(weight), expected)


def test_zero_is_no_third_value() -> None:
    weight = torch.tensor([[0.0, 0.0, 1.0, -1.0]])
    assert BinaryWeightQuantizer()(weight).tolist() == [[0.5, 0.5, 0.5, -0.5]]
    assert BinaryWeightQuantizer()(torch.zeros(2, 1, 3, 3)).isfinite().all()


def test_the_gradient_passes_within_one() -> None:
    weight = nn.Parameter(torch.tensor([[0.3, -2.0, 1.0, 0.0]]))
    BinaryWeightQuantizer()(weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1, 0, 1, 1]]


def test_a_frozen_student_computes_the_same() -> None:
    settings = QuantizerConfig(weight_bits=1, activation_bits=8, placement=Transformer())
    student = convert(network(), settings)
    recalibrate(student, [images(16)])
    frozen = freeze(student)
    torch.testing.assert_close(frozen(images()), student(images()), atol=1e-5, rtol=1e-5)
    integers = frozen.get_submodule("head.quantized_weight").integers
    assert set(integers.unique().tolist()) == {0, 1}  # type: ignore[operator]


def test_one_bit_is_for_weights_rounded_to_nearest() -> None:
    assert QuantizerConfig(weight_bits=1, activation_bits=8).widths.weights == 1
    QuantizerConfig(4, overrides=[LayerBits("head", weight_bits=1)])
    for wrong in (
        {"weight_bits": 1, "activation_bits": 1},
        {"bits": 1},
        {"weight_bits": 0},
        {"weight_bits": True},
        {"weight_bits": 1, "rounding": Adaptive()},
    ):
        with pytest.raises(ConfigurationError):
            QuantizerConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError):
        LayerBits("head", activation_bits=1)
    with pytest.raises(ValueError, match="cannot get 2 bits"):
        BinaryWeightQuantizer().change_bits(2, torch.zeros(1, 1))
