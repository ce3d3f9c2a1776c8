"""Curves of ``metrics.csv``, grouped into the charts of a page."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from hast_lightning.report.content import Curve, Panel

MAX_POINTS = 300
"""More than a chart has pixels for; of longer curves neighbours are averaged."""
MAX_BLOCKS = 6
"""Curves by block in one chart, at most: of more, evenly spaced ones are shown."""
NAMES = {
    "learning_rate": "Learning rate",
    "gradient_norm": "Gradient norm",
    "student_top1": "Top-1 accuracy of the student, %",
    "agreement": "Agreement with the teacher, %",
}
"""What is measured beside terms, which say themselves what their curves are called."""
Points = list[tuple[float, float]]


def read_panels(
    path: Path, titles: Mapping[str, str], marks: Sequence[str] = ()
) -> tuple[Panel, ...]:
    """Return the charts of a ``metrics.csv``, group by group; none where there is no such file.

    Args:
        path: The file.
        titles: What the curves of terms are called, by ``group/name``.
        marks: Ends of names of what was measured on changed images: ``_promoted``.
    """
    if not path.is_file():
        return ()
    groups: dict[tuple[str, str], dict[str, Points]] = defaultdict(dict)
    for column, points in _columns(path).items():
        stage, _, name = column.partition("/")
        if name:
            measure, curve = _split(name, marks)
            groups[stage, measure][curve] = points
    stages = list(dict.fromkeys(stage for stage, _ in groups))
    ordered = sorted(groups, key=lambda key: (stages.index(key[0]), "/" in key[1]))
    return tuple(_panel(*key, groups[key], titles, marks) for key in ordered)


def _columns(path: Path) -> dict[str, Points]:
    """Return every column's finite values by iteration, in the file's order."""
    columns: dict[str, Points] = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            numbers = {name: number for name in row if (number := _number(row[name])) is not None}
            if "step" not in numbers:
                continue
            step = numbers.pop("step")
            for name, value in numbers.items():
                columns[name].append((step, value))
    return columns


def _number(text: str | None) -> float | None:
    """Return a finite number; none for a cell that is empty or was cut off."""
    try:
        value = float(text or "nan")
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _split(name: str, marks: Sequence[str]) -> tuple[str, str]:
    """Return what is measured, and which curve it is: ``kd_promoted`` is one of ``kd``."""
    base, slash, block = name.partition("/")
    measure, images = _unmarked(base, marks)
    return (f"{base}/", block) if slash else (measure, images)


def _unmarked(name: str, marks: Sequence[str]) -> tuple[str, str]:
    """Return a name without its mark, and what images it was measured on."""
    mark = next((mark for mark in marks if name.endswith(mark)), "")
    return name.removesuffix(mark), f"{mark.replace('_', ' ')} images".strip()


def _panel(
    stage: str,
    measure: str,
    curves: dict[str, Points],
    titles: Mapping[str, str],
    marks: Sequence[str],
) -> Panel:
    title, names, notes = _title(stage, measure, titles, marks), list(curves), []
    if len(names) > MAX_BLOCKS:
        last = len(names) - 1
        kept = [names[round(i * last / (MAX_BLOCKS - 1))] for i in range(MAX_BLOCKS)]
        notes.append(f"{len(kept)} of {len(names)} blocks")
        names = kept
    if any(len(curves[name]) > MAX_POINTS for name in names):
        notes.append("neighbouring values averaged")
    thin = tuple(Curve(name, tuple(_thinned(curves[name]))) for name in names)
    return Panel(stage, title, thin, "; ".join(notes))


def _title(stage: str, measure: str, titles: Mapping[str, str], marks: Sequence[str]) -> str:
    base, images = _unmarked(measure.rstrip("/"), marks)
    known = titles.get(f"{stage}/{base}") or NAMES.get(base)
    title = known or base.replace("_", " ").capitalize()
    if not measure.endswith("/"):
        return title
    return f"{title} by block" + ("" if images == "images" else f", {images}")


def _thinned(points: Points) -> Points:
    """Return at most ``MAX_POINTS`` points, each the mean of its neighbourhood."""
    size = -(-len(points) // MAX_POINTS)
    if size == 1:
        return points
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts
    ]
