"""What holds for every quantizer, whatever the weights and activations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam

from hast_lightning.graph.tracing import trace
from hast_lightning.quantization.axes import Ranges
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.fake_quant import (
    ActivationMode,
    ActivationQuantizer,
    WeightQuantizer,
    activation_quantizers,
    freeze_ranges,
    held_weights,
    quantized_layers,
    set_activation_mode,
)
from hast_lightning.quantization.learned import LSQ, parameter_groups, step_parameters
from hast_lightning.quantization.placement import Integer
from hast_lightning.quantization.ranges import AffineParameters
from hast_lightning.quantization.rounding import dequantize, quantize, quantize_dequantize
from hast_lightning.quantization.search import LeastSquares, MinMax, Percentile
from hast_lightning.quantization.settings import QuantizerConfig
from tests.composition import composed, options

few = settings(max_examples=15, deadline=None)
bit_widths = st.integers(2, 8)
seeds = st.integers(0, 2**16)

INTEGER: dict[str, Any] = {"placement": Integer(), "include_zero": True}
QUANTIZERS: dict[str, dict[str, Any]] = {
    "minmax": {},
    "minmax with zero": {"include_zero": True},
    "mse": {"ranges": LeastSquares()},
    "mse with zero": {"ranges": LeastSquares(), "include_zero": True},
    "percentile": {"ranges": Percentile(percentile=90.0)},
    "lsq": {"ranges": LSQ(), "gradient": "clipped"},
    "lsq with zero": {"ranges": LSQ(), "gradient": "clipped", "include_zero": True},
    "deploy": {"ranges": LeastSquares(), **INTEGER},
    "deploy minmax": INTEGER,
    "deploy lsq": {"ranges": LSQ(), **INTEGER},
}
every_quantizer = pytest.mark.parametrize("name", QUANTIZERS)
SYMMETRIC = ("lsq", "deploy")


def settings_of(name: str, bits: int, **others: Any) -> QuantizerConfig:
    return QuantizerConfig(bits, **{**QUANTIZERS[name], **others})


def weight_quantizer(chosen: QuantizerConfig, weight: Tensor) -> WeightQuantizer:
    return chosen.rounding.weight_quantizer(chosen.ranges, chosen.weight_bits, weight, chosen)


def activation_quantizer(chosen: QuantizerConfig) -> ActivationQuantizer:
    return chosen.ranges.activation_quantizer(chosen.activation_bits, chosen)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weights_of(seed: int) -> Tensor:
    """Channels of several kinds: heavy-tailed, skewed, of one sign, narrow, constant, zero."""
    weight = noise(7, 4, 3, 3, seed=seed)
    weight[1] = weight[1].pow(3)
    weight[2] = weight[2].exp()
    weight[3] = -weight[3].abs() - 0.5
    weight[4] *= 1e-4
    weight[5] = 0.25
    weight[6] = 0
    return weight


def rounded_weights(name: str, bits: int, seed: int) -> tuple[Tensor, Tensor, AffineParameters]:
    """Some weights, what the quantizer makes of them, and its parameters."""
    weight = weights_of(seed)
    quantizer = weight_quantizer(settings_of(name, bits), weight)
    return weight, quantizer(weight).detach(), quantizer.parameters_of(weight)


def calibrated(name: str, bits: int, seed: int, **others: Any) -> ActivationQuantizer:
    """A quantizer whose range was frozen after three batches, of both signs or of one."""
    quantizer = activation_quantizer(settings_of(name, bits, **others))
    set_activation_mode(quantizer, ActivationMode.OBSERVE)
    for i in range(3):
        quantizer(activations(seed + i))
    freeze_ranges(quantizer)
    return quantizer


def activations(seed: int) -> Tensor:
    kinds = (F.relu, F.silu, F.hardswish, torch.sigmoid, torch.neg, torch.zeros_like)
    return kinds[seed % len(kinds)](3 * noise(4, 50, seed=seed))


# --- weights ---------------------------------------------------------------------------------


@every_quantizer
@few
@given(bits=bit_widths, seed=seeds)
def test_weights_are_integers_of_the_grid_times_the_scale(name: str, bits: int, seed: int) -> None:
    weight, rounded, (scale, zero_point) = rounded_weights(name, bits, seed)
    assert scale.shape == zero_point.shape == (7, 1, 1, 1)
    assert scale.dtype == zero_point.dtype == torch.float32
    assert (scale > 0).all()
    assert torch.equal(zero_point, zero_point.round())
    q = quantize(weight, scale, zero_point, bits)
    assert q.min() >= 0
    assert q.max() <= 2**bits - 1
    assert torch.equal(dequantize(q, scale, zero_point), rounded)
    assert all(len(channel.unique()) <= 2**bits for channel in rounded)


@every_quantizer
@few
@given(bits=bit_widths, seed=seeds)
def test_rounding_weights_twice_is_rounding_once(name: str, bits: int, seed: int) -> None:
    _, rounded, parameters = rounded_weights(name, bits, seed)
    assert torch.equal(quantize_dequantize(rounded, *parameters, bits), rounded)


@every_quantizer
@few
@given(bits=bit_widths, seed=seeds)
def test_weights_keep_their_order(name: str, bits: int, seed: int) -> None:
    weight, rounded, _ = rounded_weights(name, bits, seed)
    order = weight.flatten(1).argsort(dim=1)
    assert (rounded.flatten(1).gather(1, order).diff(dim=1) >= 0).all()


@every_quantizer
@few
@given(bits=bit_widths, seed=seeds)
def test_weights_in_range_are_off_by_half_a_step_and_others_go_to_the_end(
    name: str, bits: int, seed: int
) -> None:
    weight, rounded, (scale, zero_point) = rounded_weights(name, bits, seed)
    low, high = -zero_point * scale, (2**bits - 1 - zero_point) * scale
    # Zero points of narrow ranges far from zero are large, and so are their rounding errors.
    slack = 1e-5 * (1 + zero_point.abs()) * scale
    inside = (weight >= low) & (weight <= high)
    assert ((rounded - weight).abs() <= scale / 2 + slack)[inside].all()
    assert ((rounded - weight.clamp(low, high)).abs() <= slack)[~inside].all()


@every_quantizer
@few
@given(bits=bit_widths, seed=seeds)
def test_zero_is_exact_where_it_has_to_be(name: str, bits: int, seed: int) -> None:
    _, _, parameters = rounded_weights(name, bits, seed)
    zeros = quantize_dequantize(torch.zeros(7, 1, 1, 1), *parameters, bits)
    if name.startswith(SYMMETRIC):
        assert (parameters.zero_point == 2 ** (bits - 1)).all()
    if name.startswith(SYMMETRIC) or "zero" in name:
        assert (parameters.zero_point >= 0).all()
        assert (parameters.zero_point <= 2**bits - 1).all()
        assert (zeros == 0).all()
    assert (zeros[6] == 0).all()  # where all weights are zero


@pytest.mark.parametrize(("form"), [{}, INTEGER])
@few
@given(bits=bit_widths, seed=seeds)
def test_least_squares_are_never_worse_than_minimum_and_maximum(
    form: dict[str, Any], bits: int, seed: int
) -> None:
    weight, errors = weights_of(seed), {}
    kinds: tuple[Ranges, ...] = MinMax(), LeastSquares(), LSQ()
    for ranges in kinds:
        rounded = weight_quantizer(QuantizerConfig(bits, ranges=ranges, **form), weight)(weight)
        errors[ranges.kind] = (rounded.detach() - weight).double().flatten(1).square().sum(dim=1)
    assert (errors["mse"] <= errors["minmax"] * (1 + 1e-5) + 1e-12).all()
    if form:  # there the learned steps start from the same symmetric grid
        assert torch.equal(errors["lsq"], errors["mse"])


@every_quantizer
@pytest.mark.parametrize("gradient", ["pass_through", "clipped"])
def test_the_gradient_of_weights_passes_everywhere_or_inside_only(name: str, gradient: str) -> None:
    weight = weights_of(0)[:3].requires_grad_()
    quantizer = weight_quantizer(settings_of(name, 3, gradient=gradient), weight)
    upstream = noise(*weight.shape, seed=1)
    quantizer(weight).backward(upstream)
    scale, zero_point = quantizer.parameters_of(weight)
    # Half a step beyond the last integer still rounds to it; LSQ's range ends at the integer.
    margin = 0.0 if "lsq" in name else 0.5
    q = weight.detach() / scale + zero_point
    inside = (q > -margin) & (q < 7 + margin)
    if gradient == "pass_through" or "minmax" in name:
        inside = torch.ones_like(inside)
    else:
        assert not inside.all()
    assert weight.grad is not None
    assert torch.equal(weight.grad, upstream * inside)


# --- activations -----------------------------------------------------------------------------


@every_quantizer
@few
@given(bits=bit_widths, seed=seeds)
def test_activations_are_integers_of_one_grid(name: str, bits: int, seed: int) -> None:
    quantizer = calibrated(name, bits, seed)
    scale, zero_point = quantizer.scale, quantizer.zero_point
    assert (scale.shape, scale.dtype) == ((), torch.float32)
    assert (zero_point.shape, zero_point.dtype) == ((), torch.float32)
    assert scale > 0
    assert zero_point == zero_point.round()
    x = 5 * noise(4, 60, seed=seed)
    q = quantize(x, scale, zero_point, bits)
    output = quantizer(x).detach()
    assert q.min() >= 0
    assert q.max() <= 2**bits - 1
    assert torch.equal(dequantize(q, scale, zero_point), output)
    assert torch.equal(quantizer(output), output)
    assert (quantizer(x.flatten().sort().values[None]).diff() >= 0).all()
    low, high = -zero_point * scale, (2**bits - 1 - zero_point) * scale
    slack = 1e-5 * (1 + zero_point.abs()) * scale
    assert ((output - x.clamp(low, high)).abs() <= scale / 2 + slack).all()
    if QUANTIZERS[name].get("include_zero"):
        assert 0 <= zero_point <= 2**bits - 1
        assert quantizer(torch.zeros(2, 3)).eq(0).all()


@every_quantizer
@pytest.mark.parametrize("gradient", ["pass_through", "clipped"])
def test_the_gradient_of_activations_passes_everywhere_or_inside_only(
    name: str, gradient: str
) -> None:
    quantizer = calibrated(name, 3, 1, gradient=gradient)
    x = (20 * noise(4, 60)).requires_grad_()
    upstream = noise(4, 60, seed=1)
    quantizer(x).backward(upstream)
    margin = 0.0 if "lsq" in name else 0.5
    q = x.detach() / quantizer.scale + quantizer.zero_point
    inside = (q > -margin) & (q < 7 + margin)
    assert not inside.all()
    assert inside.any()
    assert x.grad is not None
    assert torch.equal(x.grad, upstream if gradient == "pass_through" else upstream * inside)


@pytest.mark.parametrize("name", ["percentile", "mse", "lsq", "deploy"])
def test_a_range_that_clips_gives_up_an_outlier(name: str) -> None:
    wide, narrow = (activation_quantizer(settings_of(n, 2)) for n in ("minmax", name))
    x = noise(1, 1000)
    x[0, 0] = 10.0
    for quantizer in (wide, narrow):
        quantizer.moving_range.observe(x)
        freeze_ranges(quantizer)
    assert narrow.scale < 0.7 * wide.scale


# --- students --------------------------------------------------------------------------------


class Small(nn.Module):
    """A residual block, a depthwise convolution, squeeze-and-excitation, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.bn, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.squeeze, self.excite = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
        self.act, self.linear = nn.ReLU(inplace=True), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn(self.stem(x)))
        body = self.bn2(self.body(x))
        body += x
        x = F.hardswish(self.depthwise(F.silu(body)))
        scale = self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        x = torch.cat([x * F.hardsigmoid(scale), body], 1)
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def student_of(name: str, bits: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return convert(Small().eval(), settings_of(name, bits))


def calibrate(student: nn.Module) -> None:
    set_activation_mode(student, ActivationMode.OBSERVE)
    with torch.no_grad():
        for seed in range(3):
            student(noise(8, 2, 6, 6, seed=seed))
    freeze_ranges(student)


@every_quantizer
def test_two_training_steps(name: str) -> None:
    student = student_of(name)
    optimizer = Adam(parameter_groups(student, 1e-4), lr=1e-2)
    calibrate(student)
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        with held_weights(student):
            loss = (student(noise(16, 2, 6, 6, seed=9)) - noise(16, 5)).square().mean()
            loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0]
    after = dict(student.named_parameters())
    assert all(value.isfinite().all() for value in after.values())
    moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert {"stem.weight", "depthwise.weight", "linear.weight", "bn.weight"} <= moved
    steps = {name for name, p in after.items() if any(p is s for s in step_parameters(student))}
    assert bool(steps) == ("lsq" in name)
    assert {name for name in steps if name.endswith("relative_step_size")} <= moved
    assert all(quantizer.scale > 0 for quantizer in activation_quantizers(student))
    for _, layer in quantized_layers(student):
        assert (layer.weight_quantizer.parameters_of(layer.weight).scale > 0).all()


@every_quantizer
@pytest.mark.parametrize("gradient", ["pass_through", "clipped"])
def test_held_weights_change_no_gradient(name: str, gradient: str) -> None:
    torch.manual_seed(0)
    student = convert(Small().eval(), settings_of(name, 3, gradient=gradient))
    calibrate(student)
    images, found = noise(4, 2, 6, 6, seed=5), []
    for held in (False, True):
        student.zero_grad()
        x = images.clone().requires_grad_()
        with held_weights(student if held else nn.Identity()):
            outputs = student(x), student(x + 0.1)
            torch.stack(outputs).square().sum().backward()
        gradients = {n: p.grad for n, p in student.named_parameters()}
        both = torch.stack(outputs).detach()
        found.append({"x": x.grad, "outputs": both, **gradients})
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        other = found[1][key]
        if value is None:  # an offset that stays zero
            assert key.endswith(".relative_offset")
            assert other is None
        else:
            assert other is not None
            assert torch.equal(value, other), key
            # Nothing may lie outside of a range, and then its offset is not pulled.
            assert value.abs().max() > 0 or key.endswith(".relative_offset")


@every_quantizer
def test_a_frozen_student_loads_into_a_fresh_one(name: str) -> None:
    student = student_of(name)
    calibrate(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.01)
    torch.manual_seed(1)
    fresh = convert(Small().eval(), settings_of(name, 3))
    fresh.load_state_dict(student.state_dict())
    set_activation_mode(fresh, ActivationMode.QUANTIZE)
    images = noise(4, 2, 6, 6, seed=7)
    assert torch.equal(fresh(images), student(images))
    for mine, theirs in zip(
        activation_quantizers(fresh), activation_quantizers(student), strict=True
    ):
        assert (mine.scale, mine.zero_point) == (theirs.scale, theirs.zero_point)


@every_quantizer
def test_nodes_keep_the_names_of_the_network(name: str) -> None:
    network = Small().eval()
    student = convert(network, settings_of(name, 3))
    names = [node.name for node in student.graph.nodes]
    own = [name for name in names if not name.startswith("activation_quantizers")]
    assert own == [node.name for node in trace(network).graph.nodes]
    assert len(own) < len(names)


@every_quantizer
def test_more_bits_come_closer_to_the_network(name: str) -> None:
    torch.manual_seed(0)
    network, images = Small().eval(), noise(16, 2, 6, 6, seed=3)
    distances = []
    for bits in (2, 4, 6, 8):
        student = convert(network, settings_of(name, bits))
        calibrate(student)
        distances.append(float((student(images) - network(images)).detach().norm()))
    assert distances == sorted(distances, reverse=True)
    # What percentiles cut off does not come back with more bits.
    assert distances[-1] < (0.5 if name == "percentile" else 0.1) * distances[0]


# --- by configuration ------------------------------------------------------------------------


NAMES = {
    "deploy": "mse integer",
    "per_tensor": "mse integer per tensor",
    "power": "power layer_inputs",
    "transformer": "mse transformer",
    "transformer_lsq": "lsq transformer",
    "transformer_psaq": "minmax psaq",
}


@pytest.mark.parametrize("option", options("quantizer"))
def test_every_shipped_quantizer_makes_a_student(option: str) -> None:
    config = composed(f"quantizer={option}").quantizer
    assert config.name == NAMES.get(option, option)
    student = convert(Small().eval(), config)
    calibrate(student)
    assert student(noise(2, 2, 6, 6)).isfinite().all()
    learns = option.endswith("lsq") or option == "power"
    assert bool(step_parameters(student)) == learns
    placed = len(activation_quantizers(student))
    assert placed == {"deploy": 11, "per_tensor": 11, "transformer_psaq": 7, "power": 6}.get(
        option, 5
    )
