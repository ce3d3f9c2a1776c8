"""LSQ's gradients against the formulas of the papers in plain autograd."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hast_lightning.quantization.lsq import (
    SMALLEST_STEP,
    gradient_scale,
    integer_zero_point,
    learned_fake_quantize,
    positive,
    scale_gradient,
)
from hast_lightning.quantization.rounding import quantize_dequantize

few = settings(max_examples=40, deadline=None)
bit_widths = st.integers(2, 8)
seeds = st.integers(0, 2**16)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def paper_lsq(v: Tensor, s: Tensor, q_n: int, q_p: int, g: float) -> Tensor:
    """The code of Esser et al., appendix B, with detach as the straight-through estimator."""
    s = s * g + (s - s * g).detach()
    clipped = (v / s).clamp(-q_n, q_p)
    return (clipped + (clipped.round() - clipped).detach()) * s


def paper_lsq_plus(x: Tensor, s: Tensor, beta: Tensor, highest: int, g: float) -> Tensor:
    """Bhalgat et al., equations 2 and 3, with n = 0 and p = ``highest``."""
    s = s * g + (s - s * g).detach()
    beta = beta * g + (beta - beta * g).detach()
    clipped = ((x - beta) / s).clamp(0, highest)
    return (clipped + (clipped.round() - clipped).detach()) * s + beta


def gradients(output: Tensor, upstream: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, inputs, upstream.to(output.dtype))


def assume_away_from(u: Tensor, *levels: float) -> None:
    """No value where rounding errors decide on which side of a bound it is."""
    for level in levels:
        assume(bool(((u - level).abs() > 1e-3).all()))
    assume(bool(((u - u.floor() - 0.5).abs() > 1e-3).all()))


@few
@given(bit_widths, seeds, st.floats(0.05, 2))
def test_symmetric_weights_have_the_gradients_of_the_paper(
    bits: int, seed: int, spread: float
) -> None:
    q_n, q_p = 2 ** (bits - 1), 2 ** (bits - 1) - 1
    v = noise(3, 20, seed=seed).requires_grad_()
    s = (spread * (0.5 + noise(3, 1, seed=seed + 1).abs()) / q_p).requires_grad_()
    assume_away_from(v.detach() / s.detach(), -q_n, q_p)
    upstream = noise(3, 20, seed=seed + 2)
    g = gradient_scale(20, q_p)
    expected = paper_lsq(v, s, q_n, q_p, g)
    v32, s32 = v.detach().float().requires_grad_(), s.detach().float().requires_grad_()
    zero_point = torch.full((3, 1), float(q_n))
    actual = learned_fake_quantize(v32, scale_gradient(s32, g), zero_point, bits)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(
        gradients(actual, upstream, v32, s32), gradients(expected, upstream, v, s), strict=True
    ):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-3, atol=1e-4)


@few
@given(bit_widths, seeds)
def test_activations_behind_a_relu_have_the_gradients_of_the_paper(bits: int, seed: int) -> None:
    highest = 2**bits - 1
    x = noise(4, 30, seed=seed).abs().requires_grad_()
    s = torch.tensor(1.3 / highest, dtype=torch.float64, requires_grad=True)
    assume_away_from(x.detach() / s.detach(), 0, highest)
    upstream = noise(4, 30, seed=seed + 1)
    g = gradient_scale(30, highest)
    expected = gradients(paper_lsq(x, s, 0, highest, g), upstream, x, s)
    x32, s32 = x.detach().float().requires_grad_(), s.detach().float().requires_grad_()
    output = learned_fake_quantize(x32, scale_gradient(s32, g), torch.tensor(0.0), bits)
    for mine, theirs in zip(gradients(output, upstream, x32, s32), expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-3, atol=1e-4)


@few
@given(bit_widths, seeds, st.integers(1, 200))
def test_an_offset_has_the_gradients_of_lsq_plus(bits: int, seed: int, zero_point: int) -> None:
    highest = 2**bits - 1
    zero_point = min(zero_point, highest)
    s = torch.tensor(2.0 / highest, dtype=torch.float64, requires_grad=True)
    # The paper's offset is any number, ours a whole number of steps: there they agree.
    beta = (-zero_point * s.detach()).requires_grad_()
    x = (noise(4, 30, seed=seed) + beta.detach() + 1).requires_grad_()
    assume_away_from((x.detach() - beta.detach()) / s.detach(), 0, highest)
    upstream = noise(4, 30, seed=seed + 1)
    g = gradient_scale(30, highest)
    expected = paper_lsq_plus(x, s, beta, highest, g)
    x32, s32, beta32 = (t.detach().float().requires_grad_() for t in (x, s, beta))
    scale, offset = scale_gradient(s32, g), scale_gradient(beta32, g)
    z = integer_zero_point(offset, scale, bits, include_zero=False)
    assert z == zero_point
    actual = learned_fake_quantize(x32, scale, z, bits)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(
        gradients(actual, upstream, x32, s32, beta32),
        gradients(expected, upstream, x, s, beta),
        strict=True,
    ):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-3, atol=2e-3)


def test_a_gradient_worked_out_by_hand() -> None:
    # Two bits behind a ReLU, step 1: inside up to 3. Equation 3: 0.25 gives -0.25, 1.75 gives
    # 0.25, and 9 gives Qp = 3; zero is not inside and gives -Qn = 0.
    x = torch.tensor([0.0, 0.25, 1.75, 9.0], requires_grad=True)
    s = torch.tensor(1.0, requires_grad=True)
    output = learned_fake_quantize(x, s, torch.tensor(0.0), 2)
    assert output.tolist() == [0, 0, 2, 3]
    of_x, of_s = torch.autograd.grad(output, [x, s], torch.tensor([1.0, 10, 100, 1000]))
    assert of_x.tolist() == [0, 10, 100, 0]
    assert of_s == 10 * -0.25 + 100 * 0.25 + 1000 * 3


def test_the_gradient_of_values_may_pass_where_that_of_the_step_does_not_change() -> None:
    upstream = noise(50).float()
    results = {}
    for gradient in ("clipped", "pass_through"):
        x = (3 * noise(50, seed=1)).float().requires_grad_()
        s = torch.tensor(0.5, requires_grad=True)
        output = learned_fake_quantize(x, s, torch.tensor(2.0), 2, gradient)
        results[gradient] = torch.autograd.grad(output, [x, s], upstream)
    assert torch.equal(results["pass_through"][0], upstream)
    assert not torch.equal(results["clipped"][0], upstream)
    assert torch.equal(results["pass_through"][1], results["clipped"][1])


@pytest.mark.parametrize("gradient", ["clipped", "pass_through"])
def test_a_result_that_is_known_changes_neither_value_nor_gradients(gradient: str) -> None:
    x, upstream = noise(4, 9).float(), noise(4, 9, seed=1).float()
    scale, zero_point = torch.rand(4, 1) + 0.1, torch.full((4, 1), 2.0)
    found = []
    for known in (None, quantize_dequantize(x, scale, zero_point, 2)):
        inputs = [x.clone().requires_grad_(), scale.clone().requires_grad_()]
        output = learned_fake_quantize(*inputs, zero_point, 2, gradient, known)
        found.append((output.detach(), *torch.autograd.grad(output, inputs, upstream)))
    assert all(map(torch.equal, *found))


def test_what_comes_after_may_work_in_place() -> None:
    """As a residual network adds its shortcut."""
    x, s = noise(30).float().requires_grad_(), torch.tensor(0.3, requires_grad=True)
    output = learned_fake_quantize(x, s, torch.tensor(1.0), 2)
    plain = torch.autograd.grad(output.square().sum(), [x, s], retain_graph=False)
    output = learned_fake_quantize(x, s, torch.tensor(1.0), 2)
    changed = output.clone()
    output += 1
    in_place = torch.autograd.grad(output, [x, s], 2 * changed.detach())
    assert all(map(torch.equal, plain, in_place))


def test_half_precision_is_rounded_in_float32() -> None:
    x = torch.linspace(-1, 4, 64).bfloat16().requires_grad_()
    s = torch.tensor(0.1, requires_grad=True)
    output = learned_fake_quantize(x, s, torch.tensor(3.0), 5)
    expected = quantize_dequantize(x.detach().float(), s.detach(), torch.tensor(3.0), 5)
    assert torch.equal(output, expected.bfloat16())
    of_x, of_s = torch.autograd.grad(output.sum(), [x, s])
    assert (of_x.dtype, of_s.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("known", [False, True])
def test_what_is_computed_in_slices_is_the_same(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, known: bool
) -> None:
    found = []
    for cached in (2**17, 12):
        monkeypatch.setattr("hast_lightning.core.slices.CACHED", cached)
        x = noise(7, 3, 5).to(dtype).requires_grad_()
        scale, zero_point = (torch.tensor(v, requires_grad=True) for v in (0.2, 3.0))
        grid = scale.detach(), zero_point.detach(), 3
        rounded = quantize_dequantize(x.detach().float(), *grid) if known else None
        result = learned_fake_quantize(x, scale, zero_point, 3, rounded=rounded)
        result.backward(noise(7, 3, 5, seed=1).to(dtype))
        assert result.dtype == dtype
        found.append((result, x.grad, scale.grad, zero_point.grad))
    at_once, in_slices = found
    assert torch.equal(at_once[0], in_slices[0])
    torch.testing.assert_close(at_once[1:], in_slices[1:])


@given(st.integers(1, 10**6), bit_widths)
def test_the_scale_of_the_gradient(values: int, bits: int) -> None:
    highest = 2**bits - 1
    assert gradient_scale(values, highest) == pytest.approx(1 / math.sqrt(values * highest))


def test_a_scaled_gradient_leaves_the_value_alone() -> None:
    value = noise(5).float().requires_grad_()
    scaled = scale_gradient(value, 0.1)
    assert torch.equal(scaled, value)
    (gradient,) = torch.autograd.grad(scaled, value, torch.arange(5.0))
    torch.testing.assert_close(gradient, 0.1 * torch.arange(5.0))


def test_a_step_size_below_zero_is_used_as_positive_and_can_only_come_back() -> None:
    step = torch.tensor([0.5, 0.0, -0.2, -0.2], requires_grad=True)
    used = positive(step)
    torch.testing.assert_close(used[0], step[0], rtol=0, atol=0)
    assert torch.equal(used[1:], torch.full((3,), SMALLEST_STEP))
    # An optimizer goes against the gradient: a positive one would make it smaller still.
    (gradient,) = torch.autograd.grad(used, step, torch.tensor([1.0, 1.0, 1.0, -1.0]))
    assert gradient.tolist() == [1, 0, 0, -1]


@pytest.mark.parametrize(
    ("offset", "include_zero", "expected"),
    [
        *[(0.0, False, 0), (-0.9, True, 2), (-0.9, False, 2)],
        *[(0.8, False, -2), (0.8, True, 0), (-9.0, True, 7), (-9.0, False, 18)],
    ],
)
def test_the_offset_is_a_whole_number_of_steps(
    offset: float, include_zero: bool, expected: int
) -> None:
    zero_point = integer_zero_point(torch.tensor(offset), torch.tensor(0.5), 3, include_zero)
    assert zero_point == expected


def test_no_offset_is_learned_behind_a_relu() -> None:
    offset, scale = torch.tensor(0.0, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    zero_point = integer_zero_point(offset, scale, 3, include_zero=False)
    assert torch.autograd.grad(zero_point, offset) == (0,)
