"""Scales, zero points and the moving average of activation ranges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hast_lightning.quantization.ranges import (
    SMALLEST_WIDTH,
    Grid,
    MovingRange,
    affine_parameters,
    channel_ranges,
)

few = settings(max_examples=40, deadline=None)
values = st.floats(-100, 100, width=32)
batches = st.lists(st.lists(values, min_size=1, max_size=5), min_size=1, max_size=20)


@pytest.mark.parametrize("bits", range(2, 9))
def test_scale_and_zero_point_by_their_formulas(bits: int) -> None:
    low, high = torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([3.0, 5.0, 2.5])
    scale, zero_point = affine_parameters(low, high, bits)
    steps = 2**bits - 1
    torch.testing.assert_close(scale, torch.tensor([4.0, 5.0, 0.5]) / steps)
    assert zero_point.tolist() == [round(1 / 4 * steps), 0, -round(2 / 0.5 * steps)]


@few
@given(st.integers(2, 8), values, values)
def test_including_zero_only_ever_widens(bits: int, one: float, other: float) -> None:
    low, high = torch.tensor(min(one, other)), torch.tensor(max(one, other))
    scale, zero_point = affine_parameters(low, high, bits)
    wide_scale, wide_zero_point = affine_parameters(low, high, bits, include_zero=True)
    assert wide_scale >= scale > 0
    if low <= 0 <= high:
        assert (wide_scale, wide_zero_point) == (scale, zero_point)
    reach = wide_scale * torch.stack([-wide_zero_point, 2**bits - 1 - wide_zero_point])
    assert reach[0] <= low + wide_scale / 2
    assert reach[1] >= high - wide_scale / 2 - 1e-5


@pytest.mark.parametrize(
    ("low", "high", "zero_point"), [(1.0, 2.0, 0.0), (-2.0, -1.0, 7.0), (-1.0, 6.0, 1.0)]
)
def test_including_zero_puts_its_integer_on_the_grid(
    low: float, high: float, zero_point: float
) -> None:
    ends = torch.tensor(low), torch.tensor(high)
    parameters = affine_parameters(*ends, 3, include_zero=True)
    assert parameters.zero_point == zero_point


@pytest.mark.parametrize("value", [0.0, 0.5, -3.0])
@pytest.mark.parametrize("bits", [2, 8])
def test_a_constant_has_a_positive_scale(value: float, bits: int) -> None:
    constant = torch.tensor([value])
    scale, zero_point = affine_parameters(constant, constant, bits)
    torch.testing.assert_close(scale, torch.tensor([SMALLEST_WIDTH / (2**bits - 1)]))
    assert zero_point.isfinite().all()


@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (4, 1, 5, 5), (6, 7)])
def test_ranges_of_output_channels(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    low, high = channel_ranges(weight, Grid(8))
    assert low.shape == high.shape == (shape[0], *(1,) * (len(shape) - 1))
    assert low.flatten().tolist() == [float(channel.min()) for channel in weight]
    assert high.flatten().tolist() == [float(channel.max()) for channel in weight]


def closed_form(extremes: list[float], momentum: float) -> float:
    """The bias-corrected average as one weighted sum, in double precision."""
    weights = [momentum ** (len(extremes) - 1 - i) for i in range(len(extremes))]
    total = sum(w * e for w, e in zip(weights, extremes, strict=True))
    return total / sum(weights)


@few
@given(batches, st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.9999]))
def test_the_average_equals_its_closed_form_and_lies_within_the_extremes(
    observed: list[list[float]], momentum: float
) -> None:
    moving = MovingRange(momentum, Grid(8))
    for batch in observed:
        moving.observe(torch.tensor(batch))
    low, high = (float(end) for end in moving.range())
    lows, highs = [min(batch) for batch in observed], [max(batch) for batch in observed]
    assert low == pytest.approx(closed_form(lows, momentum), rel=1e-5, abs=1e-4)
    assert high == pytest.approx(closed_form(highs, momentum), rel=1e-5, abs=1e-4)
    assert min(lows) - 1e-4 <= low <= max(lows) + 1e-4
    assert min(highs) - 1e-4 <= high <= max(highs) + 1e-4


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99, 0.9999])
def test_equal_batches_give_their_own_range_from_the_first_on(momentum: float) -> None:
    moving = MovingRange(momentum, Grid(8))
    for _ in range(200):
        moving.observe(torch.tensor([-3.0, 1.0, 7.0]))
        torch.testing.assert_close(
            torch.stack(moving.range()), torch.tensor([-3.0, 7.0]), rtol=1e-6, atol=0
        )


def test_before_the_first_batch_there_is_no_range() -> None:
    assert all(end.isnan() for end in MovingRange(0.9, Grid(8)).range())


def test_no_momentum_forgets_all_but_the_last_batch() -> None:
    moving = MovingRange(0.0, Grid(8))
    for batch in ([1.0, 2.0], [-5.0, 4.0]):
        moving.observe(torch.tensor(batch))
    assert [float(end) for end in moving.range()] == [-5, 4]


def test_observing_leaves_no_graph_and_takes_half_precision() -> None:
    moving = MovingRange(0.9, Grid(8))
    moving.observe(torch.tensor([[1.5, -0.5]], dtype=torch.bfloat16, requires_grad=True))
    low, high = moving.range()
    assert not low.requires_grad
    assert low.dtype == torch.float32
    torch.testing.assert_close(torch.stack([low, high]), torch.tensor([-0.5, 1.5]))


def test_a_restored_average_goes_on_where_it_stopped() -> None:
    whole, first, second = (MovingRange(0.9, Grid(8)) for _ in range(3))
    noise = torch.randn(6, 10, generator=torch.Generator().manual_seed(1))
    for batch in noise:
        whole.observe(batch)
    for batch in noise[:3]:
        first.observe(batch)
    second.load_state_dict(first.state_dict())
    for batch in noise[3:]:
        second.observe(batch)
    assert whole.range() == second.range()
