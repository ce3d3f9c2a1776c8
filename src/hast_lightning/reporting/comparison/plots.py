"""A comparison as plots: accuracy against bits and against seconds, and ablation bars."""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hast_lightning.reporting.comparison.rows import BITS_IN_NAME, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOT_IN_FILE_NAMES = re.compile(r"[^A-Za-z0-9.=-]+")
PAPER: dict[str, Any] = {"color": "0.6", "linewidth": 1, "markersize": 4, "alpha": 0.9}
PAPER_MARKERS = "sDv^<>ph*X"
LEGEND_CHARACTERS = 100
TICK_CHARACTERS = 40
FILE_CHARACTERS = 100
TITLE_CHARACTERS = 70
LINE_HEIGHT = 0.17
"""Of small print, in inches."""


def plots(rows: Sequence[Row]) -> dict[str, Figure]:
    """The figures that the rows are enough for, by file name without its ending."""
    made: dict[str, Figure] = {}
    for model in sorted({row.model for row in rows if row.seeds}):
        own = [row for row in rows if row.model == model and row.seeds and row.score]
        papers = [row for row in rows if row.model == model and not row.seeds and row.bits[0] < 32]
        # Accuracies and agreements have no axis in common.
        for ours in ([row for row in own if row.top1], [row for row in own if not row.top1]):
            if not ours:
                continue
            ending = f"{model}{'' if ours[0].top1 else '_agreement'}"
            if len({row.bits for row in ours}) > 1:
                made[f"bits_{ending}"] = _against_bits(ours, papers if ours[0].top1 else [])
            if len(ours) > 1:
                made[f"seconds_{ending}"] = _against_seconds(ours)
            for group in _ablations(ours):
                first = group[0]
                width = f"w{first.bits[0]}a{first.bits[1]}"
                words = ("ablation", ending, first.name, width, first.others)
                made["_".join(filter(None, words))] = _ablation_bars(group)
    return {_file_name(name): figure for name, figure in made.items()}


def _file_name(name: str) -> str:
    """For any system, and short; what would be lost of a long name is in its last characters."""
    clean = NOT_IN_FILE_NAMES.sub("_", name)
    if len(clean) <= FILE_CHARACTERS:
        return clean
    return f"{clean[:FILE_CHARACTERS]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _measure(row: Row) -> str:
    return "top-1 of the last step, %" if row.top1 else "agreement with the teacher, %"


def _points(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    scores = [row.score for row in rows if row.score]
    return [score.mean for score in scores], [score.deviation or 0.0 for score in scores]


def _against_bits(ours: Sequence[Row], papers: Sequence[Row]) -> Figure:
    figure, axes = _figure(7.2, 4.2)
    measured = {row.bits for row in ours}
    widths = sorted(measured)
    position = {bits: number for number, bits in enumerate(widths)}
    papers = [row for row in papers if row.bits in measured]
    for marker, (name, group) in zip(PAPER_MARKERS * 9, _series(papers).items(), strict=False):
        places = [position[row.bits] for row in group]
        axes.plot(places, _points(group)[0], f"{marker}:", label=f"{name} (published)", **PAPER)
    for name, group in _series(ours).items():
        means, deviations = _points(group)
        places = [position[row.bits] for row in group]
        axes.errorbar(places, means, deviations, marker="o", capsize=3, label=name)
    _teacher_line(axes, ours, horizontal=True)
    axes.set_xticks(range(len(widths)), [f"{weights}/{acts}" for weights, acts in widths])
    axes.set(xlabel="bits of weights / activations", ylabel=_measure(ours[0]))
    axes.set_title(ours[0].model)
    _legend_below(figure)
    return figure


def _series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows that differ in their bits alone, in the order of these.

    A recipe often has a sibling for every width, which make a line together; two of them at one
    width do not.
    """
    siblings: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.bits):
        siblings[_label(row)].append(row)
    found: dict[str, list[Row]] = defaultdict(list)
    for label, group in siblings.items():
        alone = len({row.bits for row in group}) == len(group)
        for row in group:
            found[
                label if alone else label.replace(_family(row), row.recipe or row.name, 1)
            ].append(row)
    return found


def _label(row: Row) -> str:
    return f"{_family(row)}: {row.settings}" if row.settings else _family(row)


def _family(row: Row) -> str:
    return BITS_IN_NAME.sub("", row.name)


def _against_seconds(ours: Sequence[Row]) -> Figure:
    figure, axes = _figure(7.2, 4.2)
    for number, row in enumerate(ours):
        if row.seconds is None or row.score is None:
            continue
        label = f"{_label(row)} W{row.bits[0]}A{row.bits[1]}"
        axes.errorbar(
            row.seconds.mean,
            row.score.mean,
            row.score.deviation or 0.0,
            row.seconds.deviation or 0.0,
            marker="os^Dv"[number // 10 % 5],
            linestyle="none",
            capsize=3,
            label=label,
        )
    _teacher_line(axes, ours, horizontal=True)
    axes.set(xlabel="seconds of a run", ylabel=_measure(ours[0]), title=ours[0].model)
    axes.set_xlim(left=0)
    _legend_below(figure)
    return figure


def _legend_below(figure: Figure) -> None:
    """A column of wrapped labels, for which the figure grows: settings may be long."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    labels = [_wrapped(label, LEGEND_CHARACTERS) for label in labels]
    lines = sum(label.count("\n") + 1 for label in labels)
    figure.set_figheight(figure.get_figheight() + LINE_HEIGHT * lines)
    figure.legend(handles, labels, loc="outside lower left", frameon=False, fontsize="small")


def _wrapped(text: str, characters: int) -> str:
    return textwrap.fill(text, characters)


def _ablations(ours: Sequence[Row]) -> list[list[Row]]:
    """Rows that differ in the parts that are on, and in nothing else."""
    groups: dict[object, list[Row]] = defaultdict(list)
    for row in ours:
        if row.parts is not None:
            groups[row.recipe, row.bits, row.others].append(row)
    return [group for group in groups.values() if len(group) > 1]


def _ablation_bars(group: Sequence[Row]) -> Figure:
    """Bars from the fewest parts at the top to all of them at the bottom."""
    rows = sorted(group, key=lambda row: (_count(row), row.settings))
    names = [_wrapped(" + ".join(row.parts or ()) or "none", TICK_CHARACTERS) for row in rows]
    lines = sum(name.count("\n") for name in names)
    figure, axes = _figure(7.2, 0.42 * len(rows) + LINE_HEIGHT * lines + 1.5)
    means, deviations = _points(rows)
    colours = ["C0" if _count(row) == max(map(_count, rows)) else "0.7" for row in rows]
    errors = deviations if any(deviations) else None
    axes.barh(range(len(rows)), means, xerr=errors, color=colours, capsize=3)
    for place, row in enumerate(rows):
        # In a column beside the axes, where no line crosses them.
        axes.annotate(
            str(row.score),
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize="small",
        )
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    start = _cut(means, deviations)
    top = max([mean + deviation for mean, deviation in zip(means, deviations, strict=True)])
    teacher = rows[0].teacher.mean if rows[0].teacher else top
    axes.set_xlim(start, max(top, teacher) + 0.04 * (max(top, teacher) - start))
    _teacher_line(axes, rows, horizontal=False)
    note = f" (the axis begins at {start:g})" if start else ""
    first = rows[0]
    axes.set_xlabel(_measure(first) + note)
    words = (first.name, first.model, f"W{first.bits[0]}A{first.bits[1]}", first.others)
    title = _wrapped(", ".join(filter(None, words)), TITLE_CHARACTERS)
    axes.set_title(title, pad=16)  # above the name of the line
    return figure


def _count(row: Row) -> int:
    return len(row.parts or ())


def _cut(means: Sequence[float], deviations: Sequence[float]) -> float:
    """Where an axis begins that shows differences of a point; a multiple of five."""
    lowest = min(mean - spread for mean, spread in zip(means, deviations, strict=True))
    room = max(max(means) - lowest, 2.0)
    return max(0.0, 5 * ((lowest - room) // 5))


def _teacher_line(axes: Axes, rows: Sequence[Row], horizontal: bool) -> None:
    teacher = next((row.teacher for row in rows if row.teacher), None)
    if teacher is None:
        return
    style: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1}
    if horizontal:
        axes.axhline(teacher.mean, label="full precision", **style)
    else:
        axes.axvline(teacher.mean, **style)
        axes.annotate(
            "full precision",
            (teacher.mean, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize="x-small",
        )
