"""A comparison as Markdown, CSV, LaTeX and HTML; the best of ours is in bold."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Callable, Iterable, Sequence

from hast_lightning.reporting.comparison.rows import Row, Spread, best

Column = tuple[str, Callable[[Row], str]]


def _text(value: Spread | None) -> str:
    return "-" if value is None else str(value)


def _duration(value: Spread | None) -> str:
    return "-" if value is None else f"{value.mean:.0f}"


def _seeds(row: Row) -> str:
    again = f" ({row.runs} runs)" if row.runs > len(row.seeds) else ""
    return ", ".join(map(str, row.seeds)) + again if row.seeds else "-"


def _ranked_column(row: Row) -> str:
    return "top-1, last step" if row.top1 is not None else "agreement"


COLUMNS: tuple[Column, ...] = (
    ("model", lambda row: row.model),
    ("W/A", lambda row: f"{row.bits[0]}/{row.bits[1]}"),
    ("recipe or method", lambda row: row.name),
    ("settings", lambda row: row.settings or "-"),
    ("seeds", _seeds),
    ("teacher", lambda row: _text(row.teacher)),
    ("calibrated", lambda row: _text(row.calibrated)),
    ("top-1, last step", lambda row: _text(row.top1)),
    ("agreement", lambda row: _text(row.agreement)),
    ("seconds", lambda row: _duration(row.seconds)),
    ("source", lambda row: row.source or "-"),
)


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns of which some row has something to say."""
    return [column for column in COLUMNS if any(column[1](row) != "-" for row in rows)]


def as_markdown(rows: Sequence[Row]) -> str:
    """A table of pipes."""
    return _table(
        rows,
        escape=lambda cell: cell.replace("|", "\\|"),
        bold=lambda cell: f"**{cell}**",
        line=lambda cells: f"| {' | '.join(cells)} |",
        rule=lambda count: f"|{' --- |' * count}",
    )


def as_latex(rows: Sequence[Row]) -> str:
    """A ``tabular`` for the package booktabs."""
    alignment = "".join("r" if _is_number(name) else "l" for name, _ in columns(rows))
    body = _table(
        rows,
        escape=_latex,
        bold=lambda cell: f"\\textbf{{{cell}}}",
        line=lambda cells: f"{' & '.join(cells)} \\\\",
        rule=lambda count: "\\midrule",
    )
    return f"\\begin{{tabular}}{{{alignment}}}\n\\toprule\n{body}\\bottomrule\n\\end{{tabular}}\n"


def as_html(rows: Sequence[Row]) -> str:
    """A ``<table>``."""
    body = _table(
        rows,
        escape=html.escape,
        bold=lambda cell: f"<strong>{cell}</strong>",
        line=lambda cells: f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>",
        rule=lambda count: "</thead><tbody>",
    )
    return f"<table>\n<thead>\n{body}</tbody>\n</table>\n"


def _table(
    rows: Sequence[Row],
    escape: Callable[[str], str],
    bold: Callable[[str], str],
    line: Callable[[Iterable[str]], str],
    rule: Callable[[int], str],
) -> str:
    shown, top = columns(rows), best(rows)
    lines = [line([escape(name) for name, _ in shown]), rule(len(shown))]
    for row in rows:
        ranked = _ranked_column(row) if row in top else None
        cells = [(name, escape(cell(row))) for name, cell in shown]
        lines.append(line([bold(text) if name == ranked else text for name, text in cells]))
    return "\n".join([*lines, ""])


def _is_number(name: str) -> bool:
    return name in ("teacher", "calibrated", "top-1, last step", "agreement", "seconds")


def _latex(cell: str) -> str:
    cell = cell.replace("\\", "\x00")
    for special in "&%$#_{}":
        cell = cell.replace(special, f"\\{special}")
    named = {"\x00": "textbackslash", "~": "textasciitilde", "^": "textasciicircum"}
    for special, name in named.items():
        cell = cell.replace(special, f"\\{name}{{}}")
    return cell.replace("±", "$\\pm$")


def as_csv(rows: Sequence[Row]) -> str:
    """Numbers apart from their deviations, unrounded, for programs."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = ("teacher", "calibrated", "top1", "agreement", "seconds")
    spreads = [f"{name}_{part}" for name in numbers for part in ("mean", "deviation")]
    named = ["model", "weight_bits", "activation_bits", "name", "settings", "seeds", "runs"]
    writer.writerow([*named, *spreads, "source"])
    for row in rows:
        values: list[float | str] = []
        for name in numbers:
            value: Spread | None = getattr(row, name)
            values += ["", ""] if value is None else [value.mean, value.deviation or ""]
        seeds = " ".join(map(str, row.seeds))
        facts = (row.model, *row.bits, row.name, row.settings, seeds, row.runs or "")
        writer.writerow([*facts, *values, row.source])
    return text.getvalue()
