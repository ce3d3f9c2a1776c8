"""GPTQ against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hast_lightning.errors import ModelError
from hast_lightning.quantization.axes import QuantizerSettings
from hast_lightning.quantization.fake_quant import QuantConv2d, QuantLinear
from hast_lightning.quantization.gptq import (
    FixedGrid,
    FixedGridQuantizer,
    input_rows,
    inverse_factor,
    round_layer,
    solve,
)
from hast_lightning.quantization.ranges import AffineParameters, Grid, channel_ranges
from hast_lightning.quantization.rounding import quantize_dequantize
from hast_lightning.quantization.settings import QuantizerConfig

BITS = 3


def settings(**more: int) -> QuantizerSettings:
    return QuantizerConfig(bits=BITS, **more)  # type: ignore[arg-type]


def some_layer(rows: int = 6, columns: int = 10) -> tuple[Tensor, Tensor, AffineParameters]:
    torch.manual_seed(0)
    weight = torch.randn(rows, columns)
    inputs = torch.randn(200, columns) @ torch.randn(columns, columns)
    grid = Grid(BITS)
    return weight, 2 * inputs.T @ inputs, grid.parameters(*channel_ranges(weight, grid))


def by_definition(
    weight: Tensor, hessian: Tensor, grid: AffineParameters, damping: float
) -> Tensor:
    """Column by column, with the inverse of what is left recomputed for every column."""
    size = len(hessian)
    damped = hessian.double() + damping * hessian.diagonal().mean() * torch.eye(size).double()
    left, found = weight.double().clone(), torch.zeros_like(weight)
    for j in range(size):
        inverse = torch.linalg.inv(damped[j:, j:])
        one = slice(j, j + 1)
        found[:, one] = quantize_dequantize(left[:, one].float(), *grid, BITS)
        error = (left[:, one] - found[:, one]) / inverse[0, 0]
        left[:, j:] -= error * inverse[0]
    return found


@pytest.mark.parametrize("block", [1, 3, 128])
def test_it_is_optimal_brain_surgery_column_by_column(block: int) -> None:
    weight, hessian, grid = some_layer()
    found = solve(weight, hessian, grid, BITS, 0.01, block)
    assert torch.allclose(found, by_definition(weight, hessian, grid, 0.01), atol=1e-5)


def test_uncorrelated_inputs_are_rounded_to_nearest() -> None:
    weight, _, grid = some_layer()
    found = solve(weight, torch.eye(10), grid, BITS, 0.01, 4)
    assert torch.equal(found, quantize_dequantize(weight, *grid, BITS))


def test_the_outputs_are_closer_than_those_of_nearest_rounding() -> None:
    weight, hessian, grid = some_layer(32, 24)
    nearest = quantize_dequantize(weight, *grid, BITS)
    found = solve(weight, hessian, grid, BITS, 0.01, 8)
    errors = [float((((weight - w) @ hessian) * (weight - w)).sum()) for w in (found, nearest)]
    assert errors[0] < 0.8 * errors[1]


def test_the_factor_is_that_of_the_damped_inverse() -> None:
    _, hessian, _ = some_layer()
    upper, dead = inverse_factor(hessian, 0.01)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(10)
    assert torch.allclose(upper.T @ upper @ damped, torch.eye(10), atol=1e-3)
    assert torch.equal(upper, upper.triu())
    assert not dead.any()


def test_an_input_that_is_always_zero_changes_nothing_for_the_others() -> None:
    weight, hessian, grid = some_layer()
    hessian[4], hessian[:, 4] = 0, 0
    kept = [i for i in range(10) if i != 4]
    # The mean of the diagonal is of all inputs.
    alone = solve(weight[:, kept], hessian[kept][:, kept], grid, BITS, 0.01 * 9 / 10, 3)
    assert torch.allclose(solve(weight, hessian, grid, BITS, 0.01, 3)[:, kept], alone, atol=1e-5)


def test_inputs_that_are_nan_are_refused() -> None:
    with pytest.raises(ModelError, match="gptq"):
        inverse_factor(torch.full((3, 3), float("nan")), 0.01)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_rows_of_a_convolution_are_what_its_weights_are_multiplied_with(
    groups: int, mode: str
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(
        4, 6, (3, 2), stride=2, padding=1, groups=groups, bias=False, padding_mode=mode
    )
    inputs = torch.randn(2, 4, 7, 6)
    rows = input_rows(layer, inputs)
    parts = torch.chunk(layer.weight.flatten(1), groups)
    found = torch.cat([r @ part.T for r, part in zip(rows, parts, strict=True)], dim=1)
    expected = layer(inputs).movedim(1, -1).flatten(0, -2)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("group_size", [None, 4])
def test_rounded_weights_stay_where_they_are(group_size: int | None) -> None:
    torch.manual_seed(0)
    plain, rounding = nn.Linear(10, 6), FixedGrid()
    options = settings(group_size=group_size) if group_size else settings()
    quantizer = rounding.weight_quantizer(options.ranges, BITS, plain.weight, options)  # type: ignore[attr-defined]
    layer = QuantLinear.from_float(plain, quantizer)
    before = quantizer.rounded(layer.weight)
    assert torch.equal(
        before,
        options.ranges.weight_quantizer(BITS, plain.weight, options).rounded(plain.weight),  # type: ignore[attr-defined]
    )
    inputs = torch.randn(50, 10) @ torch.randn(10, 10)
    round_layer(layer, input_rows(layer, inputs).transpose(1, 2) @ inputs[None], 0.01, 128)
    assert not torch.equal(layer.weight, before)
    assert torch.allclose(quantizer.rounded(layer.weight), layer.weight, atol=1e-6)


def test_groups_of_a_convolution_are_rounded_each_for_its_own_channels() -> None:
    torch.manual_seed(0)
    plain, options = nn.Conv2d(4, 6, 3, groups=2), settings()
    quantizer = FixedGrid().weight_quantizer(options.ranges, BITS, plain.weight, options)  # type: ignore[attr-defined]
    layer = QuantConv2d.from_float(plain, quantizer)
    weight = plain.weight.detach().clone().flatten(1)
    rows = input_rows(layer, torch.randn(2, 4, 8, 8))
    hessians = rows.transpose(1, 2) @ rows
    scale, zero = (each.flatten(1) for each in quantizer.parameters_of(layer.weight))
    round_layer(layer, hessians, 0.01, 128)
    second = solve(weight[3:], hessians[1], AffineParameters(scale[3:], zero[3:]), BITS, 0.01, 128)
    assert torch.allclose(layer.weight.flatten(1)[3:], second)


def test_a_fixed_grid_begins_anew_with_other_bits() -> None:
    torch.manual_seed(0)
    weight, options = torch.randn(4, 6), settings()
    quantizer = FixedGrid().weight_quantizer(options.ranges, BITS, weight, options)  # type: ignore[attr-defined]
    assert isinstance(quantizer, FixedGridQuantizer)
    quantizer.change_bits(8, weight)
    assert float((quantizer.rounded(weight) - weight).abs().max()) < 0.02
    assert len(quantizer.rounded(torch.linspace(-9, 9, 4 * 600).view(4, 600)).unique()) > 256


def test_autocast_leaves_the_arithmetic_in_float32() -> None:
    weight, hessian, _ = some_layer()
    found = []
    for autocasts in (False, True):
        plain = nn.Linear(10, 6)
        with torch.no_grad():
            plain.weight.copy_(weight)
        quantizer = FixedGrid().weight_quantizer(settings().ranges, BITS, weight, settings())  # type: ignore[attr-defined]
        layer = QuantLinear.from_float(plain, quantizer)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocasts):
            round_layer(layer, hessian[None], 0.01, 4)
        found.append(layer.weight)
    assert torch.equal(*found)


@pytest.mark.parametrize("gradient", ["clipped", "pass_through"])
def test_weights_that_have_left_a_grid_that_stays_are_clipped_where_that_is_wanted(
    gradient: str,
) -> None:
    chosen = QuantizerConfig(bits=BITS, gradient=gradient)
    weight = nn.Parameter(torch.tensor([[-1.0, -0.5, 0.5, 1.0]]))
    quantizer = FixedGrid().weight_quantizer(chosen.ranges, BITS, weight, chosen)
    with torch.no_grad():
        weight.mul_(3)
    quantizer(weight).sum().backward()
    assert weight.grad is not None
    left = 0.0 if gradient == "clipped" else 1.0
    assert weight.grad.tolist() == [[left, left, left, left]]
