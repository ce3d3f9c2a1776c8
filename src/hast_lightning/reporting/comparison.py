"""Many runs in one table: mean and deviation over seeds, beside published numbers."""

from __future__ import annotations

import csv
import html
import io
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from hast_lightning.errors import DataError
from hast_lightning.reporting.result import Result

PUBLISHED_FILE = "published.csv"
HEADER = (
    "model",
    "W/A",
    "recipe or method",
    "seeds",
    "teacher",
    "calibrated",
    "top-1, last step",
    "agreement",
    "minutes",
    "source",
)


@dataclass(frozen=True)
class Spread:
    """Mean and sample deviation of some seeds; the deviation is none of a single one."""

    mean: float
    deviation: float | None = None

    def __str__(self) -> str:
        if self.deviation is None:
            return f"{self.mean:.2f}"
        return f"{self.mean:.2f} ± {self.deviation:.2f}"


@dataclass(frozen=True)
class Row:
    """One recipe on one network at one bit width, or one published number.

    Attributes:
        model: Name of the network.
        bits: Of weights and of activations.
        name: The recipe, or the published method.
        seeds: Seeds that were run; none of a published number.
        teacher: Top-1 of the full-precision network in percent.
        calibrated: Top-1 before the first student step.
        top1: Top-1 after the last student step.
        agreement: With the teacher.
        minutes: Wall-clock time of a run.
        source: Where a published number is from.
    """

    model: str
    bits: tuple[int, int]
    name: str
    seeds: tuple[int, ...] = ()
    teacher: Spread | None = None
    calibrated: Spread | None = None
    top1: Spread | None = None
    agreement: Spread | None = None
    minutes: float | None = None
    source: str = ""

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of ``HEADER``; ``-`` where there is nothing."""
        values = (self.teacher, self.calibrated, self.top1, self.agreement)
        return (
            self.model,
            f"{self.bits[0]}/{self.bits[1]}",
            self.name,
            ", ".join(map(str, self.seeds)) or "-",
            *("-" if value is None else str(value) for value in values),
            "-" if self.minutes is None else f"{self.minutes:.0f}",
            self.source or "-",
        )


def collect(folders: Iterable[Path]) -> list[Result]:
    """The results below some folders: every ``result.json``, or every JSON file of a study.

    Raises:
        DataError: a folder does not exist, holds no result, or a file is no result.
    """
    results = []
    for folder in folders:
        if not folder.exists():
            raise DataError(f"{folder} does not exist; expected a folder of runs or of results")
        files = sorted(folder.rglob("result.json")) or sorted(folder.rglob("*.json"))
        if not files:
            raise DataError(f"{folder} holds no result.json")
        results += [Result.read(file) for file in files]
    return results


def summarize(results: Iterable[Result]) -> list[Row]:
    """One row for each network, bit width and recipe, ordered by them."""
    groups: dict[tuple[str, tuple[int, int], str], list[Result]] = defaultdict(list)
    for result in results:
        bits = (result.weight_bits, result.activation_bits)
        groups[result.model, bits, result.recipe].append(result)
    return [_row(*key, groups[key]) for key in sorted(groups)]


def _row(model: str, bits: tuple[int, int], recipe: str, results: Sequence[Result]) -> Row:
    return Row(
        model,
        bits,
        recipe,
        tuple(sorted(result.seed for result in results)),
        spread([result.teacher_top1 for result in results]),
        spread([result.calibrated_top1 for result in results]),
        spread([result.quantized_top1 for result in results]),
        spread([result.teacher_agreement for result in results]),
        statistics.mean(sum(r.seconds_by_stage.values()) for r in results) / 60,
    )


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean and deviation of what was measured; none where nothing was."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    same = len(known) == 1 or len(set(known)) == 1
    return Spread(statistics.mean(known), None if same else statistics.stdev(known))


def published(models: Iterable[str]) -> list[Row]:
    """What papers report for some networks.

    Their teachers differ from ours, and most chose the best epoch on the test labels: context,
    not a competition on equal terms.
    """
    wanted = set(models)
    text = (resources.files(__package__) / PUBLISHED_FILE).read_text(encoding="utf-8")
    return [
        Row(
            line["model"],
            (int(line["weight_bits"]), int(line["activation_bits"])),
            line["method"],
            top1=Spread(float(line["top1"])),
            source=line["source"],
        )
        for line in csv.DictReader(io.StringIO(text))
        if line["model"] in wanted
    ]


def best(rows: Sequence[Row]) -> set[Row]:
    """The rows with the highest top-1 of their network and bit width, published ones left out."""
    groups: dict[tuple[str, tuple[int, int]], list[Row]] = defaultdict(list)
    for row in rows:
        if row.seeds and row.top1 is not None:
            groups[row.model, row.bits].append(row)
    return {
        max(group, key=lambda row: row.top1.mean if row.top1 else 0.0)
        for group in groups.values()
        if len(group) > 1
    }


def as_markdown(rows: Sequence[Row]) -> str:
    """A table with the best of ours in bold."""
    top = best(rows)
    lines = [_pipes(HEADER), _pipes(["---"] * len(HEADER))]
    lines += [_pipes(_emphasized(row, row in top, "**{}**".format)) for row in rows]
    return "\n".join(lines) + "\n"


def _pipes(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _emphasized(row: Row, is_best: bool, emphasize: Callable[[str], str]) -> list[str]:
    cells = list(row.cells())
    position = HEADER.index("top-1, last step")
    if is_best:
        cells[position] = emphasize(cells[position])
    return cells


def as_csv(rows: Sequence[Row]) -> str:
    """Numbers apart from their deviations, for programs."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = ("teacher", "calibrated", "top1", "agreement")
    spreads = [f"{name}_{part}" for name in numbers for part in ("mean", "deviation")]
    writer.writerow(
        ["model", "weight_bits", "activation_bits", "name", "seeds", *spreads, "minutes", "source"]
    )
    for row in rows:
        values: list[float | str] = []
        for name in numbers:
            value: Spread | None = getattr(row, name)
            values += ["", ""] if value is None else [value.mean, value.deviation or ""]
        seeds = " ".join(map(str, row.seeds))
        minutes = "" if row.minutes is None else f"{row.minutes:.2f}"
        writer.writerow([row.model, *row.bits, row.name, seeds, *values, minutes, row.source])
    return text.getvalue()


def as_latex(rows: Sequence[Row]) -> str:
    """A ``tabular`` for the package booktabs."""
    top = best(rows)
    lines = [f"\\begin{{tabular}}{{lll{'r' * 6}l}}", "\\toprule", _ampersands(HEADER), "\\midrule"]
    lines += [_ampersands(_emphasized(row, row in top, _bold_later)) for row in rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _bold_later(cell: str) -> str:
    """Marked with a character that escaping leaves alone, and no result has."""
    return f"\x00{cell}"


def _ampersands(cells: Iterable[str]) -> str:
    return " & ".join(_latex_cell(cell) for cell in cells) + r" \\"


def _latex_cell(cell: str) -> str:
    bold, cell = cell.startswith("\x00"), cell.removeprefix("\x00")
    for special in "&%$#_":
        cell = cell.replace(special, f"\\{special}")
    cell = cell.replace("±", r"$\pm$")
    return f"\\textbf{{{cell}}}" if bold else cell


def as_html(rows: Sequence[Row]) -> str:
    """A table that stands alone in a page."""
    top = best(rows)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in HEADER)
    body = "\n".join(
        "<tr>"
        + "".join(f"<td>{cell}</td>" for cell in _emphasized(_escaped(row), row in top, _strong))
        + "</tr>"
        for row in rows
    )
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"


def _strong(cell: str) -> str:
    return f"<strong>{cell}</strong>"


def _escaped(row: Row) -> Row:
    return replace(
        row,
        model=html.escape(row.model),
        name=html.escape(row.name),
        source=html.escape(row.source),
    )
