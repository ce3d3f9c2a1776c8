"""Quantized layers, calibration of activations, freezing, and holding weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from hast_lightning.quantization.fake_quant import (
    ActivationMode,
    ActivationQuantizer,
    QuantConv2d,
    QuantLinear,
    WeightQuantizer,
    activation_quantizers,
    freeze_ranges,
    held_weights,
    quantized_layers,
    set_activation_mode,
)
from hast_lightning.quantization.ranges import affine_parameters
from hast_lightning.quantization.rounding import quantize_dequantize

few = settings(max_examples=25, deadline=None)
bit_widths = st.integers(2, 8)
seeds = st.integers(0, 2**16)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain_rounding(weight: Tensor, bits: int, include_zero: bool) -> Tensor:
    """Channel by channel, by the formulas."""
    channels = []
    for channel in weight.double():
        low, high = channel.min(), channel.max()
        if include_zero:
            low, high = low.clamp(max=0), high.clamp(min=0)
        scale = (high - low).float() / (2**bits - 1)
        zero_point = torch.round(-low.float() / scale)
        q = (torch.round(channel.float() / scale) + zero_point).clamp(0, 2**bits - 1)
        channels.append((q - zero_point) * scale)
    return torch.stack(channels)


# --- weights ---------------------------------------------------------------------------------


@few
@given(bit_widths, seeds, st.booleans())
def test_weights_are_rounded_channel_by_channel(bits: int, seed: int, include_zero: bool) -> None:
    weight = noise(5, 3, 3, 3, seed=seed)
    rounded = WeightQuantizer(bits, include_zero)(weight)
    torch.testing.assert_close(rounded, plain_rounding(weight, bits, include_zero))
    assert all(len(channel.unique()) <= 2**bits for channel in rounded)


@few
@given(bit_widths, seeds, st.integers(0, 3))
def test_output_channels_are_independent(bits: int, seed: int, changed: int) -> None:
    weight = noise(4, 2, 3, 3, seed=seed)
    quantizer = WeightQuantizer(bits)
    before = quantizer(weight)
    weight[changed] = 100 * noise(2, 3, 3, seed=seed + 1)
    after = quantizer(weight)
    others = [channel for channel in range(4) if channel != changed]
    assert torch.equal(after[others], before[others])
    assert not torch.equal(after[changed], before[changed])


@pytest.mark.parametrize("include_zero", [False, True])
@pytest.mark.parametrize("bits", range(2, 9))
def test_constant_channels_stay_what_they_are(bits: int, include_zero: bool) -> None:
    weight = torch.tensor([0.0, 0.5, -0.25, 1e-3]).view(4, 1, 1, 1).repeat(1, 2, 3, 3)
    rounded = WeightQuantizer(bits, include_zero)(weight)
    assert rounded.isfinite().all()
    torch.testing.assert_close(rounded, weight)


def test_weights_are_rounded_anew_when_they_change() -> None:
    weight = noise(2, 4)
    quantizer = WeightQuantizer(3)
    quantizer(weight)
    weight *= 2
    assert torch.equal(quantizer(weight), plain_rounding(weight, 3, False))


CONVOLUTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"stride": 2, "padding": 1},
    {"padding": (0, 2), "kernel_size": (1, 5)},
    {"padding": "same", "dilation": 2},
    {"groups": 4},
    {"padding": 1, "padding_mode": "reflect"},
]


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_a_quantized_convolution_keeps_every_option(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, **{"kernel_size": 3, **options})
    quantized = QuantConv2d.from_float(layer, WeightQuantizer(3))
    assert quantized.weight is layer.weight
    assert quantized.bias is layer.bias
    images = noise(2, 4, 9, 9)
    with torch.no_grad():
        output = quantized(images)
        layer.weight.copy_(plain_rounding(layer.weight, 3, False))
        torch.testing.assert_close(output, layer(images))


@pytest.mark.parametrize("bias", [True, False])
def test_a_quantized_linear_layer(bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 3, bias)
    quantized = QuantLinear.from_float(layer, WeightQuantizer(2))
    assert quantized.weight is layer.weight
    assert quantized.bias is layer.bias
    features = noise(5, 6)
    expected = F.linear(features, plain_rounding(layer.weight.detach(), 2, False), layer.bias)
    torch.testing.assert_close(quantized(features), expected)


@pytest.mark.parametrize("kind", ["convolution", "linear"])
def test_gradients_reach_weight_bias_and_input(kind: str) -> None:
    torch.manual_seed(0)
    quantizer = WeightQuantizer(3)
    layer: QuantConv2d | QuantLinear
    if kind == "convolution":
        layer = QuantConv2d.from_float(nn.Conv2d(2, 3, 3), quantizer)
        x = noise(2, 2, 5, 5).requires_grad_()
    else:
        layer = QuantLinear.from_float(nn.Linear(4, 3), quantizer)
        x = noise(2, 4).requires_grad_()
    rounded = quantizer.rounded(layer.weight).requires_grad_()
    upstream = torch.ones_like(layer(x))
    plain = (
        F.conv2d(x, rounded, layer.bias)
        if kind == "convolution"
        else F.linear(x, rounded, layer.bias)
    )
    expected = torch.autograd.grad(plain, [x, rounded, layer.bias], upstream)
    actual = torch.autograd.grad(layer(x), [x, layer.weight, layer.bias], upstream)
    torch.testing.assert_close(actual, expected)


# --- activations -----------------------------------------------------------------------------


def test_float_mode_passes_the_very_tensor() -> None:
    x = noise(3)
    assert ActivationQuantizer(3)(x) is x


def test_an_uncalibrated_quantizer_gives_no_plausible_numbers() -> None:
    quantizer = ActivationQuantizer(3)
    quantizer.mode = ActivationMode.QUANTIZE
    assert quantizer(noise(4)).isnan().all()


@pytest.mark.parametrize("include_zero", [False, True])
def test_observing_quantizes_with_the_average_that_includes_the_batch(include_zero: bool) -> None:
    quantizer = ActivationQuantizer(4, momentum=0.5, include_zero=include_zero)
    quantizer.mode = ActivationMode.OBSERVE
    first, second = torch.tensor([1.0, 4.0]), torch.tensor([2.0, 7.0])
    quantizer(first)
    output = quantizer(second)
    # Half of the second and a quarter of the first, over three quarters.
    ends = torch.tensor((2 * 2 + 1) / 3), torch.tensor((2 * 7 + 4) / 3)
    expected = quantize_dequantize(second, *affine_parameters(*ends, 4, include_zero), 4)
    torch.testing.assert_close(output, expected)


@few
@given(bit_widths, seeds, st.booleans())
def test_frozen_ranges_do_not_move(bits: int, seed: int, include_zero: bool) -> None:
    quantizer = ActivationQuantizer(bits, include_zero=include_zero)
    set_activation_mode(quantizer, ActivationMode.OBSERVE)
    for i in range(3):
        quantizer(noise(4, 5, seed=seed + i).relu())
    freeze_ranges(quantizer)
    assert quantizer.mode is ActivationMode.QUANTIZE
    frozen = {name: value.clone() for name, value in quantizer.state_dict().items()}
    x = noise(4, 5, seed=seed)
    first = quantizer(x)
    quantizer(1000 * noise(4, 5, seed=seed + 9))
    assert torch.equal(quantizer(x), first)
    assert all(torch.equal(frozen[name], value) for name, value in quantizer.state_dict().items())
    assert len(first.unique()) <= 2**bits


def test_freezing_takes_the_moving_average_of_every_quantizer() -> None:
    network = nn.Sequential(ActivationQuantizer(3), nn.Tanh(), ActivationQuantizer(3))
    set_activation_mode(network, ActivationMode.OBSERVE)
    for i in range(4):
        network(noise(8, seed=i))
    averages = [quantizer.moving_range.range() for quantizer in activation_quantizers(network)]
    freeze_ranges(network)
    for quantizer, average in zip(activation_quantizers(network), averages, strict=True):
        scale, zero_point = affine_parameters(*average, 3)
        assert (quantizer.scale, quantizer.zero_point) == (scale, zero_point)
        assert quantizer.mode is ActivationMode.QUANTIZE
    assert averages[0] != averages[1]


def test_several_processes_freeze_to_their_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = torch.tensor([[-1.0, 3.0]]), torch.tensor([[-2.0, 7.0]])
    seen = []

    def all_reduce(ranges: Tensor) -> None:
        seen.append(ranges.clone())
        ranges += other

    monkeypatch.setattr(torch.distributed, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    quantizer = ActivationQuantizer(3)
    quantizer.moving_range.observe(mine)
    freeze_ranges(quantizer)
    torch.testing.assert_close(seen, [mine])
    scale, zero_point = affine_parameters(torch.tensor(-1.5), torch.tensor(5.0), 3)
    torch.testing.assert_close(quantizer.scale, scale)
    assert quantizer.zero_point == zero_point


def test_a_network_without_quantizers_has_nothing_to_freeze() -> None:
    network = nn.Linear(2, 2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    freeze_ranges(network)
    torch.testing.assert_close(network.state_dict(), before)


@pytest.mark.parametrize(("gradient", "expected"), [("pass_through", 1.0), ("clipped", 0.0)])
@pytest.mark.parametrize("mode", [ActivationMode.OBSERVE, ActivationMode.QUANTIZE])
def test_the_specified_gradient_is_used(
    gradient: str, expected: float, mode: ActivationMode
) -> None:
    quantizer = ActivationQuantizer(3, gradient=gradient)
    quantizer.moving_range.observe(torch.tensor([0.0, 1.0]))
    freeze_ranges(quantizer)
    quantizer.mode = mode
    x = torch.tensor([0.5, 90.0], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, expected]


# --- the network's parts ---------------------------------------------------------------------


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        QuantConv2d.from_float(nn.Conv2d(2, 4, 3), WeightQuantizer(3)),
        ActivationQuantizer(3),
        nn.Flatten(),
        QuantLinear.from_float(nn.Linear(36, 5), WeightQuantizer(3)),
    )


def test_the_parts_are_found_by_name() -> None:
    network = small_network()
    assert quantized_layers(network) == [("0", network[0]), ("3", network[3])]
    assert activation_quantizers(network) == [network[1]]


def test_held_weights_are_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_network()
    calls = []
    find = WeightQuantizer.parameters_of
    monkeypatch.setattr(
        WeightQuantizer, "parameters_of", lambda self, w: calls.append(1) or find(self, w)
    )
    with held_weights(network):
        network(noise(1, 2, 5, 5))
        network(noise(1, 2, 5, 5))
    assert len(calls) == 2  # one a layer
    network(noise(1, 2, 5, 5))
    assert len(calls) == 4


def test_held_weights_are_let_go_of_even_after_an_error() -> None:
    network = small_network()
    with pytest.raises(RuntimeError, match="on purpose"), held_weights(network):
        raise RuntimeError("on purpose")
    images = noise(1, 2, 5, 5)
    before = network(images)
    with torch.no_grad():
        network[0].weight.mul_(3)
    assert not torch.equal(network(images), before)
