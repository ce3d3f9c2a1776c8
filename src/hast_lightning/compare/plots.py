"""A comparison as plots: accuracy against bits and seconds, bars of methods and of ablations."""

from __future__ import annotations

import hashlib
import math
import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hast_lightning.compare.notes import WITHOUT_SYNTHESIS
from hast_lightning.compare.recipes import BITS_IN_NAME
from hast_lightning.compare.rows import Row, Spread
from hast_lightning.core.bits import FLOAT_BITS, Widths

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER: dict[str, Any] = {"color": "0.6", "linewidth": 1, "markersize": 4, "alpha": 0.9}
HOLLOW = (
    f"{WITHOUT_SYNTHESIS}, hollow: images were loaded, and the time of making them is not included"
)
"""Of rows whose seconds cannot be read against those of the others."""
MOST_COURSES = 16
"""Rows whose courses one figure shows; of more, each pair of bits has a figure of its own."""
PAPER_MARKERS = "sDv^<>ph*X"
OUR_MARKERS = "os^Dv"
"""Each for as many rows as there are colours."""
MIDDLE = 0.6
"""Of the colours, from where on dark text cannot be read."""
WIDEST_SHIFT = 0.07
LEGEND_CHARACTERS = 100
TICK_CHARACTERS = 40
FILE_CHARACTERS = 120
LINE_HEIGHT = 0.17
"""Of small print, in inches."""


def plots(rows: Sequence[Row]) -> dict[str, Figure]:
    """Return the figures that the rows are enough for, by file name without its ending."""
    made: dict[str, Figure] = {}
    for model in sorted({row.model for row in rows if row.seeds}):
        own = [row for row in rows if row.model == model and row.seeds and row.score]
        papers = [row for row in rows if row.model == model and not (row.seeds or _in_float(row))]
        # Accuracies and agreements have no axis in common.
        for ours in ([row for row in own if row.top1], [row for row in own if not row.top1]):
            if not ours:
                continue
            ending = f"{model}{'' if ours[0].top1 else '_agreement'}"
            if len({row.bits for row in ours}) > 1:
                made[f"bits_{ending}"] = _against_bits(ours, papers if ours[0].top1 else [])
            timed = [row for row in ours if row.seconds]
            of_bits = {f"_w{w}a{a}": group for (w, a), group in _by_bits(timed).items()}
            for which, group in ({"": timed} if len(timed) <= MOST_COURSES else of_bits).items():
                if len(group) > 1:
                    made[f"seconds_{ending}{which}"] = _against_seconds(group)
            for bits, group in _by_bits(ours).items():
                if len({row.method for row in group}) > 1:
                    made[f"methods_{ending}_w{bits[0]}a{bits[1]}"] = _method_bars(group)
            if len({row.method for row in ours}) > 1 and len({row.bits for row in ours}) > 1:
                made[f"matrix_{ending}"] = _matrix(ours)
            for (name, budget, bits, quantizer), group in _ablations(ours).items():
                words = ("ablation", name, budget, ending, f"w{bits[0]}a{bits[1]}", quantizer)
                made["_".join(filter(None, words))] = _ablation_bars(group)
    return {_file_name(name): figure for name, figure in made.items()}


def _by_bits(rows: Sequence[Row]) -> dict[tuple[int, int], list[Row]]:
    groups: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.bits].append(row)
    return groups


def _file_name(name: str) -> str:
    """Return a file's name: names of networks may have separators in them, at any length."""
    clean = re.sub(r"[^\w.]+", "-", name).strip("-")
    if len(clean) <= FILE_CHARACTERS:
        return clean
    # What tells two long names apart may be in their last characters.
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
    return [score.mean for score in scores], [_bar(score) for score in scores]


def _bar(spread: Spread) -> float:
    """Return half an error bar's length; NaN for a single seed, which has none."""
    return math.nan if spread.deviation is None else spread.deviation


def _against_bits(ours: Sequence[Row], papers: Sequence[Row]) -> Figure:
    figure, axes = _figure(7.2, 4.2)
    measured = {row.bits for row in ours}
    widths = sorted(measured)
    position = {bits: float(number) for number, bits in enumerate(widths)}
    papers = [row for row in papers if row.bits in measured]
    of_papers = _series(papers, [row.name for row in papers])
    for marker, (name, group) in zip(PAPER_MARKERS * 9, of_papers.items(), strict=False):
        places = [position[row.bits] for row in group]
        axes.plot(places, _points(group)[0], f"{marker}:", label=f"{name}, published", **PAPER)
    series = _series(ours, _names_of_lines(ours))
    for number, ((name, group), shift) in enumerate(
        zip(series.items(), _shifts(len(series)), strict=True)
    ):
        means, deviations = _points(group)
        places = [position[row.bits] + shift for row in group]
        marker = OUR_MARKERS[number // 10 % len(OUR_MARKERS)]
        axes.errorbar(places, means, deviations, marker=marker, capsize=3, label=name)
    _teacher_line(axes, ours, horizontal=True)
    axes.set_xticks(range(len(widths)), [f"{weights}/{acts}" for weights, acts in widths])
    axes.set(xlabel="bits of weights / activations", ylabel=_measure(ours[0]))
    axes.set_title(ours[0].model)
    _legend_below(figure)
    return figure


def _shifts(count: int) -> list[float]:
    """Return shifts sideways, so that points of one width do not hide each other."""
    middle = (count - 1) / 2
    return [WIDEST_SHIFT * (number - middle) / max(middle, 1) for number in range(count)]


def _series(rows: Sequence[Row], names: Sequence[str]) -> dict[str, list[Row]]:
    """Return the rows of each name, in the order of their bits."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row, name in sorted(zip(rows, names, strict=True), key=lambda pair: pair[0].bits):
        found[name].append(row)
    return found


def _names_of_lines(rows: Sequence[Row]) -> list[str]:
    """Return what the line of each row is called: what rows differ in that are on other lines."""
    names = _distinct(rows, [_without_bits(row) for row in rows])
    widths = Counter(zip(names, (row.bits for row in rows), strict=True))
    # A recipe whose bits were swept meets the recipes of those bits: each is a line of its own.
    shared = {name for (name, _), count in widths.items() if count > 1}
    if not shared:
        return names
    whole = _distinct(rows, [row.recipe or row.name for row in rows])
    return [w if name in shared else name for name, w in zip(names, whole, strict=True)]


def _without_bits(row: Row) -> str:
    return BITS_IN_NAME.sub("", row.recipe) if row.title else row.method


def _distinct(rows: Sequence[Row], names: Sequence[str], *, with_bits: bool = False) -> list[str]:
    """Return the names of the rows in words, without those that all rows have in common.

    Args:
        rows: Of one plot.
        names: Of their recipes, or of their methods where these are all that there is.
        with_bits: Bits are a word, too.
    """
    words = [
        (
            name,
            *_beside_name(row, name, rows, names),
            *((_bits(row),) if with_bits else ()),
            *row.settings.words,
        )
        for row, name in zip(rows, names, strict=True)
    ]
    common = set(words[0]).intersection(*words[1:])
    return [
        ", ".join(word for word in each if word not in common) or name
        for each, name in zip(words, names, strict=True)
    ]


def _beside_name(row: Row, name: str, rows: Sequence[Row], names: Sequence[str]) -> Iterator[str]:
    """Yield method and budget where rows of the same name differ in them."""
    namesakes = [other for other, its in zip(rows, names, strict=True) if its == name]
    if any(other.method != row.method for other in namesakes):
        yield row.method
    if any(other.budget != row.budget for other in namesakes):
        yield row.budget


def _with_bits(row: Row) -> str:
    """Return the name, with the bits where it does not tell them."""
    if BITS_IN_NAME.search(row.title):
        return row.name
    return f"{row.name} {_bits(row)}"


def _in_float(row: Row) -> bool:
    return set(row.bits) == {FLOAT_BITS}


def _bits(row: Row) -> str:
    return Widths(*row.bits).short


def _against_seconds(ours: Sequence[Row]) -> Figure:
    figure, axes = _figure(7.2, 4.2)
    names = _distinct(ours, [_without_bits(row) for row in ours], with_bits=True)
    if any(row.without_synthesis for row in ours):
        axes.plot([], [], " ", label=HOLLOW)
    for number, (row, name) in enumerate(zip(ours, names, strict=True)):
        if row.seconds is None or row.score is None:
            continue
        colour, loaded = f"C{number % 10}", row.without_synthesis
        if row.course:
            # The evaluation, which comes last, takes time and changes nothing.
            course = (*row.course, (row.seconds.mean, row.score.mean))
            line = ".:" if loaded else ".-"
            axes.plot(*zip(*course, strict=True), line, color=colour, linewidth=1)
        axes.errorbar(
            row.seconds.mean,
            row.score.mean,
            _bar(row.score),
            _bar(row.seconds),
            marker=OUR_MARKERS[number // 10 % len(OUR_MARKERS)],
            color=colour,
            markerfacecolor="white" if loaded else colour,
            linestyle="none",
            capsize=3,
            label=f"{name} {WITHOUT_SYNTHESIS}" if loaded else name,
        )
    _teacher_line(axes, ours, horizontal=True)
    axes.set(ylabel=_measure(ours[0]), title=ours[0].model)
    lines = "; a line goes from stage to stage" if any(row.course for row in ours) else ""
    axes.set_xlabel(f"wall-clock time of a run, seconds{lines}")
    axes.set_xlim(left=0)
    _legend_below(figure)
    return figure


def _legend_below(figure: Figure) -> None:
    """Draw a column of wrapped labels, for which the figure grows: settings may be long."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    labels = [textwrap.fill(label, LEGEND_CHARACTERS) for label in labels]
    lines = sum(label.count("\n") + 1 for label in labels)
    figure.set_figheight(figure.get_figheight() + LINE_HEIGHT * lines)
    figure.legend(handles, labels, loc="outside lower left", frameon=False, fontsize="small")


def _ablations(ours: Sequence[Row]) -> dict[tuple[str, str, tuple[int, int], str], list[Row]]:
    """Return the rows of each chart: of one recipe at one bit width with one quantizer."""
    groups: dict[tuple[str, str, tuple[int, int], str], list[Row]] = defaultdict(list)
    for row in ours:
        if row.settings.switches:
            groups[row.recipe or row.name, row.budget, row.bits, _quantizer(row)].append(row)
    return {key: group for key, group in groups.items() if _is_switched(group)}


def _is_switched(rows: Sequence[Row]) -> bool:
    """Return whether a part is on in one row and off in another: not all rows know of all parts."""
    found = {switch for row in rows for switch in row.settings.switches}
    return len({name for name, _ in found}) < len(found)


def _quantizer(row: Row) -> str:
    """Return its name, and what else of it the runs differ in."""
    others = [word for word in row.settings.quantizer if not word.startswith("quantizer=")]
    return ", ".join([row.quantizer, *others])


def _ablation_bars(group: Sequence[Row]) -> Figure:
    """Return bars from the fewest parts at the top to all of them at the bottom."""
    rows = sorted(group, key=lambda row: (_parts(row), str(row.settings)))
    full = max(map(_parts, rows))
    title = f"{_with_bits(rows[0])}, {rows[0].model}\nquantizer {_quantizer(rows[0])}"
    names = [row.settings.beside_quantizer for row in rows]
    return _bars(rows, names, [_parts(row) == full for row in rows], title)


def _method_bars(group: Sequence[Row]) -> Figure:
    """Return a bar for each row, the best at the top."""
    rows = sorted(group, key=lambda row: -row.score.mean if row.score else 0.0)
    names = _distinct(rows, [_without_bits(row) for row in rows])
    title = f"{_bits(rows[0])}, {rows[0].model}"
    return _bars(rows, names, [row is rows[0] for row in rows], title)


def _bars(rows: Sequence[Row], names: Sequence[str], blue: Sequence[bool], title: str) -> Figure:
    names = [textwrap.fill(name, TICK_CHARACTERS) for name in names]
    lines = sum(name.count("\n") for name in names)
    figure, axes = _figure(7.2, 0.42 * len(rows) + LINE_HEIGHT * lines + 1.5)
    means, errors = _points(rows)
    deviations = [0.0 if math.isnan(error) else error for error in errors]
    colours = ["C0" if its else "0.7" for its in blue]
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
    axes.set_xlabel(_measure(rows[0]) + note)
    axes.set_title(title, pad=16)  # above the name of the line
    return figure


def _matrix(ours: Sequence[Row]) -> Figure:
    """Return a table of methods and bits, the darker the better; the best settings of each cell."""
    widths = sorted({row.bits for row in ours})
    cells: dict[str, dict[tuple[int, int], Spread]] = defaultdict(dict)
    for row in sorted(ours, key=lambda row: row.score.mean if row.score else 0.0):
        if row.score:
            cells[row.method][row.bits] = row.score
    names = sorted(cells)
    figure, axes = _figure(max(4.0, 1.3 * len(widths) + 2.2), 0.42 * len(names) + 1.4)
    means = [[cells[n][b].mean if b in cells[n] else math.nan for b in widths] for n in names]
    axes.imshow(means, cmap="Blues", aspect="auto")
    known = [found.mean for row in cells.values() for found in row.values()]
    middle = min(known) + MIDDLE * (max(known) - min(known))
    for down, name in enumerate(names):
        for along, bits in enumerate(widths):
            if found := cells[name].get(bits):
                colour = "white" if found.mean > middle else "black"
                spread = "" if found.deviation is None else f" ± {found.deviation:.1f}"
                text = f"{found.mean:.1f}{spread}"
                axes.text(along, down, text, ha="center", va="center", color=colour)
    axes.set_xticks(range(len(widths)), [f"W{weights}A{acts}" for weights, acts in widths])
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False)
    chosen = "of several settings the best by this number"
    axes.set_title(f"{_measure(ours[0])}\n{ours[0].model}; {chosen}", fontsize="medium")
    return figure


def _parts(row: Row) -> int:
    return len(row.settings.on)


def _cut(means: Sequence[float], deviations: Sequence[float]) -> float:
    """Return the start of an axis that shows differences of a point; a multiple of five."""
    lowest = min(mean - spread for mean, spread in zip(means, deviations, strict=True))
    room = max(max(means) - lowest, 2.0)
    return max(0.0, 5 * ((lowest - room) // 5))


def _teacher_line(axes: Axes, rows: Sequence[Row], horizontal: bool) -> None:
    """Draw a line for each full-precision network that the rows are read against."""
    # To the digits that are shown: other versions of torch differ in the last bits.
    for top1 in sorted({round(row.teacher.mean, 2) for row in rows if row.teacher}):
        style: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1}
        if horizontal:
            axes.axhline(top1, label=f"full precision, {top1:.2f} %", **style)
        else:
            axes.axvline(top1, **style)
            axes.annotate(
                "full precision",
                (top1, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize="x-small",
            )
