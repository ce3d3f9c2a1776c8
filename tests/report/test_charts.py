"""Where ticks, lines and bars lie."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hast_lightning.report import charts
from hast_lightning.report.content import Curve, Difficulties, Panel

VALUES = st.floats(-1e12, 1e12, allow_nan=False)
POINTS = st.lists(st.tuples(st.integers(0, 10**6).map(float), VALUES), min_size=1, max_size=8)


def panel(*curves: tuple[tuple[float, float], ...]) -> Panel:
    named = tuple(Curve(f"c{index}", points) for index, points in enumerate(curves))
    return Panel("stage", "title", named)


def coordinates(path: str) -> list[tuple[float, float]]:
    numbers = [float(text) for text in re.findall(r"-?\d+(?:\.\d+)?", path)]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def inside(x: float, y: float) -> bool:
    right, floor = charts.WIDTH - charts.RIGHT, charts.HEIGHT - charts.BOTTOM
    slack = 0.06  # coordinates are rounded to a tenth
    across = charts.LEFT - slack <= x <= right + slack
    return across and charts.TOP - slack <= y <= floor + slack


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0.13, 0.58, [0, 0.2, 0.4, 0.6]),
        (0, 340, [0, 100, 200, 300, 400]),
        (-3, 5, [-4, -2, 0, 2, 4, 6]),
    ],
)
def test_ticks_are_round_and_cover_the_values(
    low: float, high: float, expected: list[float]
) -> None:
    assert charts.nice_ticks(low, high, 4) == pytest.approx(expected)


def test_ticks_of_the_iterations_stay_inside() -> None:
    assert charts.nice_ticks(3, 97, 4, inside=True) == [25, 50, 75]
    assert charts.nice_ticks(7, 7, 4, inside=True) == [7]


@pytest.mark.parametrize("value", [0.0, 4.0, -3.0])
def test_a_constant_has_an_axis_around_it(value: float) -> None:
    ticks = charts.nice_ticks(value, value, 4)
    assert ticks[0] < value < ticks[-1]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.25, "0.25"),
        (1200.0, "1200"),
        (1e-5, "1e-5"),
        (2.5e6, "2.5e6"),
        (-0.5, "-0.5"),
        (-3e-7, "-3e-7"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert charts.number(value) == text


def test_powers_of_ten_cover_the_values_and_are_few() -> None:
    assert charts.log_ticks(0.02, 30) == pytest.approx([0.01, 0.1, 1, 10, 100])
    many = charts.log_ticks(1e-12, 1e3)
    assert many[0] <= 1e-12 and many[-1] >= 1e3 and len(many) <= 7


@given(POINTS, POINTS)
def test_every_point_and_tick_is_inside_the_chart(
    first: list[tuple[float, float]], second: list[tuple[float, float]]
) -> None:
    chart = charts.line_chart(panel(tuple(first), tuple(second)))
    for curve, line in zip((first, second), chart.lines, strict=True):
        points = coordinates(line.path)
        if len(curve) == 1:  # a cross, which may reach over the edge
            xs, ys = zip(*points, strict=True)
            points = [(sum(xs) / len(xs), sum(ys) / len(ys))]
        assert points and all(inside(*point) for point in points)
    assert chart.x_ticks and all(inside(tick.at, charts.TOP) for tick in chart.x_ticks)
    assert len(chart.y_ticks) > 1
    assert all(inside(charts.LEFT, tick.at) for tick in chart.y_ticks)


def test_more_is_higher_and_later_is_further_right() -> None:
    (line,) = charts.line_chart(panel(((0, 1), (5, 3), (10, 2)))).lines
    (x0, y0), (x1, y1), (x2, y2) = coordinates(line.path)
    assert x0 == charts.LEFT and x0 < x1 < x2 == charts.WIDTH - charts.RIGHT
    assert y1 < y2 < y0  # the vertical axis of an SVG points down


def test_an_axis_is_logarithmic_only_where_it_has_to_be() -> None:
    assert charts.line_chart(panel(((0, 1), (1, 49)))).y_label == ""
    assert charts.line_chart(panel(((0, 0), (1, 1e6)))).y_label == ""
    logarithmic = charts.line_chart(panel(((0, 1), (1, 100), (2, 10))))
    assert logarithmic.y_label == "logarithmic scale"
    heights = [y for _, y in coordinates(logarithmic.lines[0].path)]
    assert heights[0] - heights[2] == pytest.approx(heights[2] - heights[1], abs=0.2)


def test_a_single_point_is_drawn() -> None:
    """As a cross: a line of no length is not drawn by every browser, and hardly to be seen."""
    (line,) = charts.line_chart(panel(((4, 2),))).lines
    across, down = (coordinates(part) for part in line.path.removeprefix("M").split("M"))
    assert across[1][0] - across[0][0] == down[1][1] - down[0][1] == 8
    assert across[0][1] == across[1][1] and down[0][0] == down[1][0]


def test_a_chart_is_said_in_words() -> None:
    summary = charts.line_chart(panel(((0, 1), (5, 3)), ((1, 0.5), (9, 0.25)))).summary
    assert summary == (
        "c0: 1 at iteration 0, 3 at iteration 5. c1: 0.5 at iteration 1, 0.25 at iteration 9"
    )


def test_a_histogram_counts_every_image_once() -> None:
    values = (0.0, 0.02, 0.05, 0.5, 0.99, 1.0)
    shares = charts.shares(values)
    assert len(shares) == charts.BINS and sum(shares) == pytest.approx(100)
    assert [round(share * 6 / 100) for share in shares if share] == [2, 1, 1, 2]
    assert charts.shares(()) == [0] * charts.BINS


def test_bars_are_as_high_as_their_shares_and_the_outline_shows_the_changed() -> None:
    images = (0.06, 0.06, 0.06, 0.99)
    chart = charts.histogram(Difficulties("student", images, (0.99,) * 4, "promoted"))
    assert chart.bars[1].height == pytest.approx(3 * chart.bars[-1].height)
    assert sum(bar.height > 0 for bar in chart.bars) == 2
    (outline,) = chart.lines
    assert outline.name == "promoted"
    assert min(y for _, y in coordinates(outline.path)) < chart.bars[1].y
    assert chart.summary == "Mean difficulty for the student: 0.292, promoted 0.990"
    assert charts.histogram(Difficulties("student", (0.5,))).lines == ()


def test_mostly_easy_images_are_told_apart_on_a_logarithmic_axis() -> None:
    chart = charts.histogram(Difficulties("teacher", (0.0, 1.2e-4, 1.2e-2, 1.0, 1.2e-3)))
    assert chart.x_label == "difficulty 1 − p(label), logarithmic"
    assert [bar.height > 0 for bar in chart.bars] == [i in (0, 4, 8, 12, 19) for i in range(20)]
    assert [tick.text for tick in chart.x_ticks] == ["≤1e-5", "1e-4", "0.001", "0.01", "0.1", "1"]
    places = [tick.at for tick in chart.x_ticks]
    # A power of ten is four bars wide.
    assert places[2] == pytest.approx(chart.bars[8].x - 0.5)
    assert places == sorted(places)
