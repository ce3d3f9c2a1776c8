"""A comparison as Markdown, CSV, LaTeX and HTML; the best of ours is in bold."""

from __future__ import annotations

import csv
import html
import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from hast_lightning.compare.notes import WITHOUT_SYNTHESIS
from hast_lightning.compare.rows import AGREEMENT, ERROR, TOP1, Row, Spread, best

Column = tuple[str, Callable[[Row], str]]
OUTPUT_ERROR, PERPLEXITY = "error of outputs", "perplexity"
"""Columns of networks that are measured otherwise; rows are not ranked by them."""


def _text(value: Spread | None) -> str:
    return "-" if value is None else str(value)


def _digits(value: Spread | None) -> str:
    """Return a spread of numbers of any size, such as errors, which may be small."""
    if value is None or value.deviation is None:
        return "-" if value is None else f"{value.mean:.3g}"
    return f"{value.mean:.3g} ± {value.deviation:.2g}"


def _duration(row: Row) -> str:
    if row.seconds is None:
        return "-"
    mark = WITHOUT_SYNTHESIS if row.without_synthesis else ""
    seconds = row.seconds.mean
    return f"{seconds:.0f}{mark}" if seconds >= 10 else f"{seconds:.1f}{mark}"


COLUMNS: tuple[Column, ...] = (
    ("model", lambda row: row.model),
    ("W/A", lambda row: row.listed_bits),
    ("method", lambda row: row.method or "-"),
    ("recipe", lambda row: row.title or "-"),
    ("budget", lambda row: row.budget or "-"),
    ("settings", lambda row: str(row.settings) or "-"),
    ("seeds", lambda row: ", ".join(map(str, row.seeds)) or "-"),
    ("images", lambda row: "-" if row.images is None else str(row.images)),
    ("teacher", lambda row: _text(row.teacher)),
    ("calibrated", lambda row: _text(row.calibrated)),
    (TOP1, lambda row: _text(row.top1)),
    (AGREEMENT, lambda row: _text(row.agreement)),
    (ERROR, lambda row: _text(row.error)),
    (OUTPUT_ERROR, lambda row: _digits(row.output_error)),
    (PERPLEXITY, lambda row: _text(row.perplexity)),
    ("seconds", _duration),
    ("source", lambda row: row.source or "-"),
)
NUMBERS = (
    *("images", "teacher", "calibrated", TOP1, AGREEMENT, ERROR, OUTPUT_ERROR, PERPLEXITY),
    "seconds",
)


WHERE_THEY_DIFFER = ("budget", "images")
"""Columns that say nothing where they are the same for all of our rows of a network."""


def columns(rows: Sequence[Row]) -> list[Column]:
    """Return the columns of which some row has something to say."""
    return [
        (name, cell)
        for name, cell in COLUMNS
        if any(cell(row) != "-" for row in rows)
        and (name not in WHERE_THEY_DIFFER or _differ(rows, cell))
    ]


def _differ(rows: Sequence[Row], cell: Callable[[Row], str]) -> bool:
    """Return whether our rows of one network differ in a column."""
    found: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.seeds:
            found[row.model].add(cell(row))
    return any(len(cells) > 1 for cells in found.values())


def as_markdown(rows: Sequence[Row], notes: Sequence[str] = ()) -> str:
    """Return a table of pipes, and the notes as a list."""
    table = _table(
        rows,
        escape=_markdown,
        bold=lambda cell: f"**{cell}**",
        line=lambda cells: f"| {' | '.join(cells)} |",
        rule=lambda count: f"|{' --- |' * count}",
    )
    listed = "".join(f"- {_markdown(note)}\n" for note in notes)
    return f"{table}\n{listed}" if listed else table


def as_latex(rows: Sequence[Row], notes: Sequence[str] = ()) -> str:
    """Return a ``tabular`` for the package booktabs, and the notes as comments above it."""
    alignment = "".join("r" if name in NUMBERS else "l" for name, _ in columns(rows))
    body = _table(
        rows,
        escape=_latex,
        bold=lambda cell: f"\\textbf{{{cell}}}",
        line=lambda cells: f"{' & '.join(cells)} \\\\",
        rule=lambda count: "\\midrule",
    )
    comments = "".join(f"% {' '.join(note.split())}\n" for note in notes)
    table = f"\\begin{{tabular}}{{{alignment}}}\n\\toprule\n{body}\\bottomrule\n\\end{{tabular}}\n"
    return comments + table


def as_html(rows: Sequence[Row], notes: Sequence[str] = ()) -> str:
    """Return a ``<table>``, and the notes as a list; cells of settings have the class ``words``."""
    opened = ['<td class="words">' if name == "settings" else "<td>" for name, _ in columns(rows)]

    def line(cells: Iterable[str]) -> str:
        found = (f"{tag}{cell}</td>" for tag, cell in zip(opened, cells, strict=True))
        return f"<tr>{''.join(found)}</tr>"

    body = _table(
        rows,
        escape=html.escape,
        bold=lambda cell: f"<strong>{cell}</strong>",
        line=line,
        rule=lambda count: "</thead><tbody>",
    )
    # The first line is the header's.
    first, rest = body.split("\n", 1)
    first = re.sub("<td[^>]*>", '<th scope="col">', first).replace("</td>", "</th>")
    listed = "".join(f"<li>{html.escape(note)}</li>\n" for note in notes)
    table = f"<table>\n<thead>\n{first}\n{rest}</tbody>\n</table>\n"
    return f"{table}<ul>\n{listed}</ul>\n" if listed else table


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
        ranked = row.ranked_by[0] if row in top and row.ranked_by else None
        cells = [(name, escape(cell(row))) for name, cell in shown]
        lines.append(line([bold(text) if name == ranked else text for name, text in cells]))
    return "\n".join([*lines, ""])


def _markdown(text: str) -> str:
    """Return text on one line, without what would end a cell or begin markup."""
    text = " ".join(text.split())
    for special in "\\|*<":
        text = text.replace(special, f"\\{special}")
    return text


def _latex(cell: str) -> str:
    cell = " ".join(cell.split()).replace("\\", "\x00")
    for special in "&%$#_{}":
        cell = cell.replace(special, f"\\{special}")
    # The last three are other signs in LaTeX's oldest font encoding, which is its default.
    named = {
        **{"\x00": "textbackslash", "~": "textasciitilde", "^": "textasciicircum"},
        **{"<": "textless", ">": "textgreater", "|": "textbar"},
    }
    for special, name in named.items():
        cell = cell.replace(special, f"\\{name}{{}}")
    return cell.replace("±", "$\\pm$").replace(WITHOUT_SYNTHESIS, "$\\dagger$")


def as_csv(rows: Sequence[Row]) -> str:
    """Return numbers apart from their deviations, unrounded, for programs."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = (
        *("teacher", "calibrated", "top1", "agreement", "error", "output_error", "perplexity"),
        "seconds",
    )
    spreads = [f"{name}_{part}" for name in numbers for part in ("mean", "deviation")]
    named = ["model", "weight_bits", "activation_bits", "mixed", "method", "recipe", "budget"]
    writer.writerow(
        [*named, "settings", "seeds", "images", *spreads, "stages", "repeated_runs", "source"]
    )
    for row in rows:
        writer.writerow(
            [
                _inert(row.model),
                *row.bits,
                int(row.mixed),
                _inert(row.method),
                _inert(row.recipe),
                _inert(row.budget),
                _inert(str(row.settings)),
                " ".join(map(str, row.seeds)),
                row.images,
                *(part for name in numbers for part in _parts(getattr(row, name))),
                " ".join(row.stages),
                len(row.repeats),
                _inert(row.source),
            ]
        )
    return text.getvalue()


def _parts(value: Spread | None) -> tuple[float | None, float | None]:
    return (None, None) if value is None else (value.mean, value.deviation)


def _inert(text: str) -> str:
    """Return text that spreadsheets do not take for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
