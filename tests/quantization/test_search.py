"""Ranges that clip: percentiles against a sorted list, least squares against every candidate."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hast_lightning.errors import ConfigurationError
from hast_lightning.quantization import search
from hast_lightning.quantization.axes import Ranges
from hast_lightning.quantization.learned import LSQ
from hast_lightning.quantization.ranges import Grid, extremes
from hast_lightning.quantization.rounding import quantize_dequantize
from hast_lightning.quantization.search import (
    SAMPLED_VALUES,
    SHRINK_FACTORS,
    LeastSquares,
    MinMax,
    Percentile,
    least_squares,
    percentiles,
)

few = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 2**16)
grids = st.builds(Grid, st.integers(2, 8), st.booleans(), st.booleans())


def rows_of(seed: int, rows: int = 3, count: int = 50, tails: float = 3.0) -> Tensor:
    """Values with a few far outliers, of both signs and of one."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, count, generator=generator)
    values = values + tails * values.pow(3) / 6
    values[0] = values[0].relu()
    values[-1] = values[-1].abs() + 0.5
    return values


def squared_errors(rows: Tensor, ends: tuple[Tensor, Tensor], grid: Grid) -> Tensor:
    rounded = quantize_dequantize(rows, *grid.parameters(*ends), grid.bits)
    return (rounded - rows).double().square().sum(dim=1)


# --- least squares ---------------------------------------------------------------------------


@few
@given(seeds, grids, st.integers(1, 200))
def test_the_squared_error_is_never_larger_than_that_of_the_extremes(
    seed: int, grid: Grid, count: int
) -> None:
    rows = rows_of(seed, count=count)
    found = squared_errors(rows, least_squares(rows, grid), grid)
    assert (found <= squared_errors(rows, extremes(rows, grid), grid) * (1 + 1e-5)).all()


@few
@given(seeds, grids)
def test_it_is_the_least_of_all_candidates_in_every_row(seed: int, grid: Grid) -> None:
    rows = rows_of(seed)
    found = squared_errors(rows, least_squares(rows, grid), grid)
    for row, error in zip(rows, found, strict=True):
        low, high = float(row.min()), float(row.max())
        towards = min(max(0.0, low), high)
        for factor in SHRINK_FACTORS:
            ends = [torch.tensor([[towards + factor * (end - towards)]]) for end in (low, high)]
            other = squared_errors(row[None], (ends[0], ends[1]), grid)
            assert error <= other[0] * (1 + 1e-4) + 1e-9


@few
@given(seeds, grids)
def test_shrunken_ranges_lie_within_the_extremes(seed: int, grid: Grid) -> None:
    rows = rows_of(seed)
    (low, high), (lowest, highest) = least_squares(rows, grid), extremes(rows, grid)
    assert low.shape == high.shape == (3, 1)
    assert (lowest <= low).all()
    assert (low <= high).all()
    assert (high <= highest).all()
    assert low[0] == 0  # a range that begins at zero shrinks from above alone


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_far_outlier_is_given_up_at_few_bits_and_kept_at_many(symmetric: bool) -> None:
    rows = torch.linspace(-1, 1, 1000)[None].repeat(1, 1)
    rows[0, -1] = 5.0
    for bits, gives_up in ((2, True), (8, False)):
        _, high = least_squares(rows, Grid(bits, symmetric=symmetric))
        assert (high < 5) == gives_up


def test_a_finer_search_would_hardly_be_better() -> None:
    """Guards the spacing of the factors: within 2 % of a search in steps of a thousandth."""
    rows = rows_of(0, rows=40, count=144, tails=0.0)[1:-1]
    for bits in (2, 3, 4):
        grid = Grid(bits)
        found = squared_errors(rows, least_squares(rows, grid), grid).sum()
        low, high = extremes(rows, grid)
        factors = torch.linspace(0.2, 1, 801)
        fine = torch.stack([squared_errors(rows, (f * low, f * high), grid) for f in factors])
        assert found <= fine.amin(dim=0).sum() * 1.02


@pytest.mark.parametrize("value", [0.0, 0.5, -3.0])
def test_constant_rows_keep_their_value(value: float) -> None:
    rows = torch.full((2, 9), value)
    for end in least_squares(rows, Grid(3)):
        torch.testing.assert_close(end, torch.full((2, 1), value))


def test_the_pieces_of_the_search_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, grid = rows_of(3), Grid(3)
    expected = least_squares(rows, grid)
    for at_once in (1, 10**9):
        monkeypatch.setattr(search, "VALUES_AT_ONCE", at_once)
        assert all(map(torch.equal, least_squares(rows, grid), expected))


def test_long_rows_are_sampled_and_their_extremes_are_not() -> None:
    row = torch.zeros(1, 8 * SAMPLED_VALUES)
    row[0, 1] = 1.0  # between two samples
    assert least_squares(row, Grid(8))[1] <= 1
    many = torch.randn(1, 8 * SAMPLED_VALUES, generator=torch.Generator().manual_seed(0))
    ends = least_squares(many, Grid(3))
    (error,), (whole,) = (squared_errors(many, e, Grid(3)) for e in (ends, extremes(many, Grid(3))))
    assert error < 0.6 * whole
    (exact,) = squared_errors(many, least_squares(many[:, : SAMPLED_VALUES // 2], Grid(3)), Grid(3))
    assert error == pytest.approx(float(exact), rel=0.05)


# --- percentiles -----------------------------------------------------------------------------


@few
@given(seeds, st.integers(1, 300), st.sampled_from([51.0, 75.0, 90.0, 99.0, 99.9, 99.99, 100.0]))
def test_percentiles_by_nearest_rank(seed: int, count: int, percentile: float) -> None:
    rows = rows_of(seed, count=count)
    low, high = percentiles(rows, Grid(8), percentile)
    left_out = count - math.ceil(round(percentile * count / 100, 6))
    for row, *ends in zip(rows.tolist(), low[:, 0].tolist(), high[:, 0].tolist(), strict=True):
        inside = sorted(row)[left_out : count - left_out] or [0.0]
        if inside[0] == inside[-1]:
            inside = sorted(row)
        assert ends == [inside[0], inside[-1]]


def test_a_thousand_values_of_which_one_is_left_out_at_either_end() -> None:
    rows = torch.arange(1000.0)[None].flip(1)
    assert [float(end) for end in percentiles(rows, Grid(8), 99.9)] == [1.0, 998.0]
    assert [float(end) for end in percentiles(rows, Grid(8), 100)] == [0.0, 999.0]


def test_a_row_that_is_nearly_constant_keeps_its_extremes() -> None:
    rows = torch.zeros(1, 10_000)
    rows[0, 17] = 3.0
    assert [float(end) for end in percentiles(rows, Grid(8), 99.9)] == [0.0, 3.0]


# --- the parts -------------------------------------------------------------------------------


@pytest.mark.parametrize("ranges", [MinMax(), LeastSquares(), Percentile(percentile=97.0), LSQ()])
def test_each_kind_of_ranges_finds_its_own(ranges: Ranges) -> None:
    rows = rows_of(5, count=400)
    expected = {
        "minmax": extremes(rows, Grid(2)),
        "percentile": percentiles(rows, Grid(2), 97.0),
        "mse": least_squares(rows, Grid(2)),
        "lsq": least_squares(rows, Grid(2)),
    }
    assert all(map(torch.equal, ranges.find(rows, Grid(2)), expected[ranges.kind]))
    assert not torch.equal(expected["mse"][1], expected["minmax"][1])
    assert not torch.equal(expected["percentile"][1], expected["minmax"][1])


@pytest.mark.parametrize("percentile", [50, 100.5, float("nan")])
def test_a_percentile_that_leaves_no_range_is_refused(percentile: float) -> None:
    with pytest.raises(ConfigurationError, match=rf"^percentile={percentile} must be greater than"):
        Percentile(percentile=percentile)
