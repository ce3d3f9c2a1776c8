from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hast_lightning.quantization.adaround import (
    Adaptive,
    AdaptiveWeightQuantizer,
    first_v,
    rounding_loss,
    soft_bit,
    undecided,
)
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.fake_quant import QuantConv2d, WeightQuantizer
from hast_lightning.quantization.settings import QuantizerConfig


def plain_soft_bit(v: float) -> float:
    return min(max(1.2 / (1 + math.exp(-v)) - 0.1, 0.0), 1.0)


def test_soft_bits_are_those_of_the_formula() -> None:
    values = [-9.0, -2.0, -0.3, 0.0, 0.4, 2.2, 9.0]
    expected = torch.tensor([plain_soft_bit(v) for v in values])
    assert torch.allclose(soft_bit(torch.tensor(values)), expected, atol=1e-6)


def test_the_first_v_gives_back_the_fraction() -> None:
    fraction = torch.linspace(0, 0.999, 50)
    assert torch.allclose(soft_bit(first_v(fraction)), fraction, atol=1e-5)


def test_the_rounding_loss_is_zero_only_where_every_bit_is_decided() -> None:
    assert float(rounding_loss(torch.tensor([-20.0, 20.0]), 2.0)) == 0
    found = float(rounding_loss(torch.tensor([0.0, 0.7]), 3.0))
    expected = sum(1 - abs(2 * plain_soft_bit(v) - 1) ** 3 for v in (0.0, 0.7))
    assert found == pytest.approx(expected, rel=1e-5)


def test_what_is_undecided_is_the_mean_distance_from_the_nearer_end() -> None:
    assert float(undecided(torch.tensor([-20.0, 20.0]))) == 0
    bits = [plain_soft_bit(v) for v in (-1.0, 0.3, 9.0)]
    expected = sum(min(bit, 1 - bit) for bit in bits) / 3
    assert float(undecided(torch.tensor([-1.0, 0.3, 9.0]))) == pytest.approx(expected, rel=1e-5)


def quantizer(bits: int = 3) -> tuple[AdaptiveWeightQuantizer, nn.Parameter]:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 3, 3, 3))
    return AdaptiveWeightQuantizer(bits, weight, WeightQuantizer(bits)), weight


def test_soft_rounding_starts_from_the_weights_themselves() -> None:
    made, weight = quantizer()
    made.soft = True
    # The zero point is an integer, so that the ends of an asymmetric range may be cut.
    place = weight / made.scale + made.zero_point
    inside = (place >= 0) & (place <= 7)
    assert inside.float().mean() > 0.9
    assert torch.allclose(made(weight)[inside], weight[inside], atol=1e-5)


def test_hard_rounding_starts_as_rounding_to_nearest() -> None:
    made, weight = quantizer()
    nearest = WeightQuantizer(3).rounded(weight)
    assert torch.allclose(made.rounded(weight), nearest, atol=1e-6)


def test_a_changed_v_rounds_the_other_way_by_one_step() -> None:
    made, _ = quantizer()
    before = made.integers()
    with torch.no_grad():
        made.v.neg_()
    moved = (made.integers() - before).abs()
    # One step, but for what the ends of the grid clamp.
    assert set(moved.unique().tolist()) <= {0.0, 1.0}
    assert moved.sum() > moved.numel() / 2


def test_a_settled_weight_is_on_the_grid_and_rounds_to_itself() -> None:
    made, weight = quantizer()
    with torch.no_grad():
        made.relative_scale.mul_(1.1)
        made.v.add_(0.4)
    expected = made.rounded(weight)
    made.settled(weight)
    assert torch.equal(weight, expected)
    integers = (weight / made.scale).round() + made.zero_point
    assert torch.equal(integers, made.integers())


def test_bits_and_scales_have_gradients_and_the_weight_has_none() -> None:
    made, weight = quantizer()
    made.soft = True
    made(weight).square().sum().backward()
    assert made.v.grad is not None
    assert made.relative_scale.grad is not None
    assert weight.grad is None


def test_the_axis_puts_it_into_every_layer() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    student = convert(network.eval(), QuantizerConfig(bits=3, rounding=Adaptive()))
    layer = student.get_submodule("0")
    assert isinstance(layer, QuantConv2d)
    assert isinstance(layer.weight_quantizer, AdaptiveWeightQuantizer)
