"""Charts as geometry: where lines, bars and ticks lie, in the units of an SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from hast_lightning.report.content import Curve, Difficulties, Panel

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 38
LOG_FROM = 50.0
"""Positive values whose largest is so many times the smallest are shown on a logarithmic axis."""
CROSS = 4
"""Reach of the cross that a single point is drawn as."""
BINS = 20
SMALLEST = 1e-5
"""Left end of a logarithmic axis of difficulties; what is less is drawn there."""
MOSTLY_EASY = 1 / BINS
"""Difficulties whose median is below would all be in the first bin."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis, at ``at`` along it."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """One curve: its points as an SVG path."""

    name: str
    path: str
    summary: str


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram; its place and size."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Chart:
    """A chart that needs only to be drawn.

    Attributes:
        title: What is shown.
        x_label: Quantity and unit of the horizontal axis.
        y_label: Of the vertical axis.
        x_ticks: Left to right.
        y_ticks: Bottom to top.
        lines: Curves, or the outline of a second histogram.
        bars: Of a histogram.
        bars_name: What the bars stand for.
        summary: The chart in words, for those who cannot see it.
        note: What the reader should know of how it is shown.
    """

    title: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = ()
    bars_name: str = ""
    summary: str = ""
    note: str = ""


Scale = Callable[[float], float]


def line_chart(panel: Panel) -> Chart:
    """Return the curves of ``panel`` over its x, on a logarithmic axis where needed."""
    xs = [x for curve in panel.curves for x, _ in curve.points]
    ys = [y for curve in panel.curves for _, y in curve.points]
    logarithmic = min(ys) > 0 and max(ys) > LOG_FROM * min(ys)
    x_scale = _linear(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    values = log_ticks(min(ys), max(ys)) if logarithmic else nice_ticks(min(ys), max(ys), 4)
    y_scale = _vertical(
        min([*ys, *values]), max([*ys, *values]), math.log10 if logarithmic else float
    )
    return Chart(
        panel.title,
        panel.x_label,
        "logarithmic scale" if logarithmic else "",
        tuple(Tick(x_scale(x), number(x)) for x in nice_ticks(min(xs), max(xs), 4, inside=True)),
        tuple(Tick(y_scale(y), number(y)) for y in values),
        tuple(
            Line(c.name, _path(c, x_scale, y_scale), _summary(c, panel.x_label))
            for c in panel.curves
        ),
        summary=". ".join(_summary(curve, panel.x_label) for curve in panel.curves),
        note=panel.note,
    )


def histogram(values: Difficulties) -> Chart:
    """Return shares of images by difficulty: bars as they are, an outline of what became of them.

    Where most images are easy the axis is logarithmic: on a linear one they would be one bar.
    """
    logarithmic = bool(values.before) and median(values.before) < MOSTLY_EASY
    place = _log_place if logarithmic else float
    before, after = (shares([place(v) for v in side]) for side in (values.before, values.after))
    x_scale = _linear(0, 1, LEFT, WIDTH - RIGHT)
    ticks = nice_ticks(0, max(*before, *after, 1e-9), 4)
    y_scale = _vertical(0, max(ticks), float)
    floor, width = y_scale(0), x_scale(1 / BINS) - x_scale(0)
    bars = tuple(
        Bar(x_scale(i / BINS) + 0.5, y_scale(share), width - 1, floor - y_scale(share))
        for i, share in enumerate(before)
    )
    outline = Line(values.word, _outline(after, x_scale, y_scale), "")
    return Chart(
        f"Difficulty for the {values.network}",
        f"difficulty 1 − p(label){', logarithmic' if logarithmic else ''}",
        "% of images",
        _difficulty_ticks(x_scale, logarithmic),
        tuple(Tick(y_scale(y), number(y)) for y in ticks),
        (outline,) if values.after else (),
        bars,
        "as they are",
        _histogram_summary(values),
        f"{_histogram_summary(values)}.",
    )


def _log_place(difficulty: float) -> float:
    """Return the place of a difficulty between the ends of the logarithmic axis, in [0, 1]."""
    return 1 - math.log10(max(difficulty, SMALLEST)) / math.log10(SMALLEST)


def _difficulty_ticks(scale: Scale, logarithmic: bool) -> tuple[Tick, ...]:
    if not logarithmic:
        return tuple(Tick(scale(x / 5), f"{x / 5:g}") for x in range(6))
    first = f"≤{number(SMALLEST)}"
    powers = [10.0**power for power in range(round(math.log10(SMALLEST)) + 1, 1)]
    texts = [first, *map(number, powers)]
    places = [0.0, *map(_log_place, powers)]
    return tuple(Tick(scale(x), text) for x, text in zip(places, texts, strict=True))


def shares(values: Sequence[float]) -> list[float]:
    """Return the percent of ``values``, which lie in [0, 1], in each of ``BINS`` equal bins."""
    counts = [0] * BINS
    for value in values:
        counts[min(max(int(value * BINS), 0), BINS - 1)] += 1
    return [100 * count / max(len(values), 1) for count in counts]


def nice_ticks(low: float, high: float, count: int, *, inside: bool = False) -> list[float]:
    """Return about ``count`` round numbers that cover [low, high], or lie inside it."""
    if high <= low:  # a constant, for which the axis needs some extent all the same
        reach = abs(low) / 2 or 1.0
        low, high = (low, high) if inside else (low - reach, high + reach)
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9) if inside else math.floor(low / step + 1e-9)
    last = math.floor(high / step + 1e-9) if inside else math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten that cover [low, high], at most six or so."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, math.ceil((last - first) / 5))
    return [10.0**power for power in range(first, last + stride, stride)]


def number(value: float) -> str:
    """Return a short number: ``0.25``, ``1200``, ``3e-5``."""
    if abs(value) >= 10_000 or 0 < abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value + 0.0:.4g}"  # -0 is 0


def _linear(low: float, high: float, start: float, end: float) -> Scale:
    extent = (high - low) or 1.0
    return lambda value: start + (end - start) * (value - low) / extent


def _vertical(low: float, high: float, transform: Callable[[float], float]) -> Scale:
    scale = _linear(transform(low), transform(high), HEIGHT - BOTTOM, TOP)
    return lambda value: scale(transform(value))


def _path(curve: Curve, x_scale: Scale, y_scale: Scale) -> str:
    places = [(x_scale(x), y_scale(y)) for x, y in curve.points]
    if len(places) == 1:  # of a line to itself hardly anything would be seen
        ((x, y),) = places
        ends = ((x - CROSS, y), (x + CROSS, y)), ((x, y - CROSS), (x, y + CROSS))
        return "".join(map(_line, ends))
    return _line(places)


def _line(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def _outline(heights: Sequence[float], x_scale: Scale, y_scale: Scale) -> str:
    corners = [f"{x_scale(0):.1f} {y_scale(0):.1f}"]
    for i, share in enumerate(heights):
        corners += [f"{x_scale(x / BINS):.1f} {y_scale(share):.1f}" for x in (i, i + 1)]
    return "M" + "L".join([*corners, f"{x_scale(1):.1f} {y_scale(0):.1f}"])


def _summary(curve: Curve, x_label: str) -> str:
    (start, first), (end, last) = curve.points[0], curve.points[-1]
    places = [
        f"{x_label} {number(x)}" if x_label == "iteration" else f"{number(x)} {x_label}"
        for x in (start, end)
    ]
    return f"{curve.name}: {number(first)} at {places[0]}, {number(last)} at {places[1]}"


def _histogram_summary(values: Difficulties) -> str:
    text = f"Mean difficulty for the {values.network}: {_mean(values.before):.3f}"
    return text + (f", {values.word} {_mean(values.after):.3f}" if values.after else "")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)
