"""Quantize-dequantize: invariants of its values, and the two gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hast_lightning.quantization.ranges import affine_parameters
from hast_lightning.quantization.rounding import (
    dequantize,
    fake_quantize,
    quantize,
    quantize_dequantize,
    substitute,
)

few = settings(max_examples=40, deadline=None)
values = st.floats(-50, 50, width=32)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Mostly values of ordinary size, sometimes far outside every range."""
    drawn = draw(st.lists(values | st.floats(-(2.0**20), 2.0**20, width=32), min_size=1))
    return torch.tensor(drawn)


@st.composite
def grids(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Scale, zero point and bits of ranges anywhere, with and without zero inside."""
    bits = draw(st.integers(2, 8))
    low = draw(st.floats(-20, 20, width=32))
    width = draw(st.floats(0.125, 40, width=32))
    ends = torch.tensor(low), torch.tensor(low) + width
    return *affine_parameters(*ends, bits, draw(st.booleans())), bits


@few
@given(tensors(), grids())
def test_integers_lie_between_zero_and_the_highest(
    x: Tensor, grid: tuple[Tensor, Tensor, int]
) -> None:
    scale, zero_point, bits = grid
    q = quantize(x, scale, zero_point, bits)
    assert torch.equal(q, q.round())
    assert q.min() >= 0
    assert q.max() <= 2**bits - 1
    assert q.shape == x.shape


@few
@given(tensors(), grids())
def test_the_shortcut_equals_quantize_and_dequantize(
    x: Tensor, grid: tuple[Tensor, Tensor, int]
) -> None:
    scale, zero_point, bits = grid
    expected = dequantize(quantize(x, scale, zero_point, bits), scale, zero_point)
    assert torch.equal(quantize_dequantize(x, scale, zero_point, bits), expected)


@few
@given(tensors(), grids())
def test_rounding_twice_is_rounding_once(x: Tensor, grid: tuple[Tensor, Tensor, int]) -> None:
    once = quantize_dequantize(x, *grid)
    assert torch.equal(quantize_dequantize(once, *grid), once)


@few
@given(tensors(), grids())
def test_order_is_kept(x: Tensor, grid: tuple[Tensor, Tensor, int]) -> None:
    rounded = quantize_dequantize(x.sort().values, *grid)
    assert (rounded.diff() >= 0).all()


@few
@given(grids())
def test_no_more_values_than_the_bits_allow(grid: tuple[Tensor, Tensor, int]) -> None:
    bits = grid[2]
    rounded = quantize_dequantize(torch.linspace(-80, 80, 4001), *grid)
    assert len(rounded.unique()) <= 2**bits
    # Evenly spaced over the range, all of them are met.
    scale, zero_point = grid[:2]
    inside = dequantize(torch.arange(2.0**bits), scale, zero_point)
    assert len(quantize_dequantize(inside, *grid).unique()) == 2**bits


@few
@given(
    st.integers(2, 8),
    st.floats(-20, 20, width=32),
    st.floats(0.125, 40, width=32),
    st.lists(st.floats(0, 1, width=32), min_size=1),
    st.booleans(),
)
def test_inside_the_range_the_error_is_at_most_half_a_step(
    bits: int, low: float, width: float, shares: list[float], include_zero: bool
) -> None:
    ends = torch.tensor(low), torch.tensor(low) + width
    x = torch.lerp(ends[0], ends[1], torch.tensor(shares)).clamp(*ends)
    scale, zero_point = affine_parameters(*ends, bits, include_zero)
    error = (quantize_dequantize(x, scale, zero_point, bits) - x).abs()
    assert (error <= 0.5 * scale + 1e-5).all()


@few
@given(tensors(), grids())
def test_outside_the_range_the_nearest_end_is_given(
    x: Tensor, grid: tuple[Tensor, Tensor, int]
) -> None:
    scale, zero_point, bits = grid
    ends = dequantize(torch.tensor([0.0, 2.0**bits - 1]), scale, zero_point)
    rounded = quantize_dequantize(x, *grid)
    assert (rounded[x < ends[0]] == ends[0]).all()
    assert (rounded[x > ends[1]] == ends[1]).all()


@few
@given(st.integers(2, 8), values, values)
def test_zero_is_exact_where_the_range_is_made_to_contain_it(
    bits: int, one: float, other: float
) -> None:
    ends = torch.tensor(min(one, other)), torch.tensor(max(one, other))
    scale, zero_point = affine_parameters(*ends, bits, include_zero=True)
    assert 0 <= zero_point <= 2**bits - 1
    assert quantize_dequantize(torch.zeros(3), scale, zero_point, bits).eq(0).all()


@few
@given(st.integers(2, 8), st.floats(0, 50, width=32), st.booleans())
def test_zero_is_exact_in_the_range_of_a_relu(bits: int, high: float, include_zero: bool) -> None:
    grid = affine_parameters(torch.tensor(0.0), torch.tensor(high), bits, include_zero)
    assert grid.zero_point == 0
    assert quantize_dequantize(torch.zeros(3), *grid, bits).eq(0).all()


@few
@given(st.integers(2, 8), st.integers(0, 2**16), st.integers(0, 3))
def test_channels_do_not_see_each_other(bits: int, seed: int, changed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 6, generator=generator)
    scale = torch.rand(4, 1, generator=generator) + 0.1
    zero_point = torch.randint(0, 2**bits, (4, 1), generator=generator).float()
    rounded = quantize_dequantize(x, scale, zero_point, bits)
    alone = [quantize_dequantize(x[c], scale[c], zero_point[c], bits) for c in range(4)]
    assert torch.equal(rounded, torch.stack(alone))
    scale[changed], zero_point[changed], x[changed] = 7.0, 1.0, 100.0
    others = [c for c in range(4) if c != changed]
    assert torch.equal(quantize_dequantize(x, scale, zero_point, bits)[others], rounded[others])


def test_a_grid_worked_out_by_hand() -> None:
    # Two bits of step 0.5 whose second integer is zero: -0.5, 0, 0.5, 1.
    x = torch.tensor([-3.0, -0.5, -0.3, -0.2, 0.0, 0.24, 0.26, 0.8, 1.2, 9.0])
    scale, zero_point = torch.tensor(0.5), torch.tensor(1.0)
    expected = torch.tensor([-0.5, -0.5, -0.5, 0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0])
    integers = torch.tensor([0.0, 0, 0, 1, 1, 1, 2, 3, 3, 3])
    assert torch.equal(quantize_dequantize(x, scale, zero_point, 2), expected)
    assert torch.equal(quantize(x, scale, zero_point, 2), integers)


def test_halves_go_to_the_even_integer() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, 3.5, 4.5])
    q = quantize(x, torch.tensor(1.0), torch.tensor(0.0), 3)
    assert q.tolist() == [0, 2, 2, 4, 4]


def test_the_input_is_left_as_it_is() -> None:
    x = torch.linspace(-2, 2, 9)
    before = x.clone()
    scale, zero_point = torch.tensor(0.5), torch.tensor(2.0)
    q = quantize(x, scale, zero_point, 3)
    kept = q.clone()
    dequantize(q, scale, zero_point)
    quantize_dequantize(x, scale, zero_point, 3)
    fake_quantize(x, scale, zero_point, 3, "clipped")
    assert torch.equal(x, before)
    assert torch.equal(q, kept)


@few
@given(tensors(), grids())
def test_both_gradients_go_with_the_same_values(
    x: Tensor, grid: tuple[Tensor, Tensor, int]
) -> None:
    expected = quantize_dequantize(x, *grid)
    assert torch.equal(fake_quantize(x, *grid), expected)
    assert torch.equal(fake_quantize(x, *grid, "pass_through"), expected)
    assert torch.equal(fake_quantize(x, *grid, "clipped"), expected)


# Two bits of step 1 whose integers are -1, 0, 1, 2; half a step beyond still rounds to them.
POINTS = torch.tensor([-9.0, -1.6, -1.4, -0.3, 0.0, 1.9, 2.4, 2.6, 9.0])
INSIDE = torch.tensor([0.0, 0, 1, 1, 1, 1, 1, 0, 0])


@pytest.mark.parametrize(("gradient", "passed"), [("pass_through", None), ("clipped", INSIDE)])
def test_the_gradient_passes_everywhere_or_only_inside(
    gradient: str, passed: Tensor | None
) -> None:
    x = POINTS.clone().requires_grad_()
    upstream = torch.arange(1.0, 10.0)
    fake_quantize(x, torch.tensor(1.0), torch.tensor(1.0), 2, gradient).backward(upstream)
    expected = upstream if passed is None else upstream * passed
    assert x.grad is not None
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("gradient", ["pass_through", "clipped"])
def test_half_precision_is_rounded_in_float32(gradient: str) -> None:
    x = torch.linspace(-1, 4, 64).bfloat16().requires_grad_()
    grid = affine_parameters(torch.tensor(0.0), torch.tensor(3.1), 5)
    result = fake_quantize(x, *grid, 5, gradient)
    assert result.dtype == torch.bfloat16
    expected = quantize_dequantize(x.detach().float(), *grid, 5).bfloat16()
    assert torch.equal(result, expected)
    result.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


def test_substitute_gives_one_forward_and_the_gradient_to_the_other() -> None:
    parameter = torch.randn(3, requires_grad=True)
    value = torch.randn(3, requires_grad=True)
    result = substitute(parameter, value)
    assert torch.equal(result, value)
    (result * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [1, 2, 3]
    assert value.grad is None
