"""``command=compare``: from folders of runs to one table and its plots."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hast_lightning.compare.notes import notes
from hast_lightning.compare.plots import plots
from hast_lightning.compare.published import beside, published
from hast_lightning.compare.rows import Row, summarize
from hast_lightning.compare.runs import collect, unfinished
from hast_lightning.compare.tables import as_csv, as_html, as_latex, as_markdown
from hast_lightning.config import Config
from hast_lightning.config.compare import CompareConfig
from hast_lightning.errors import StorageError
from hast_lightning.records.printing import plain_console, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = {"markdown": "md", "csv": "csv", "latex": "tex", "html": "html"}
NO_PLOTS = "No plots: they need matplotlib (pip install 'hast-lightning[plots]')"
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Comparison of runs</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font-family: system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem }}
div {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-size: 0.9rem }}
td, th {{ border-bottom: 1px solid #ddd; padding: 0.3rem 0.5rem; white-space: nowrap }}
td.words {{ min-width: 9rem; overflow-wrap: anywhere; white-space: normal }}
th {{ border-bottom: 2px solid #333; font-weight: 600; text-align: left; white-space: normal }}
th {{ vertical-align: bottom }}
li {{ overflow-wrap: anywhere }}
th button {{ all: unset; cursor: pointer }}
th button:focus-visible {{ outline: 2px solid #06c }}
th[aria-sort=ascending] button::after {{ content: " \\2191" }}
th[aria-sort=descending] button::after {{ content: " \\2193" }}
img {{ height: auto; max-width: min(100%, 50rem); margin-top: 2rem; display: block }}
</style></head>
<body>
<h1>Comparison of runs</h1>
<div>
{table}</div>
{pictures}
<script>{sorting}</script>
</body></html>
"""
SORTING = """
const body = document.querySelector('tbody');
const headers = [...document.querySelectorAll('th')];
// "85.35 ± 1.11" and "120†" are one number, "4/8" and "4/8 mixed" two.
const numeric = text => /^-?[\\d.]+(e-?\\d+)?([/]\\d+( mixed)?| ± [\\d.e-]+|†)?$/.test(text);
const keys = texts => {
  const numbers = texts.every(text => text === '-' || numeric(text));
  return texts.map(text => text === '-' ? null
    : numbers ? text.split('/').map(parseFloat) : [text.toLowerCase()]);
};
const order = (a, b) => (a[0] > b[0]) - (a[0] < b[0]) || (a[1] > b[1]) - (a[1] < b[1]);
headers.forEach((header, column) => {
  const button = document.createElement('button');
  button.textContent = header.textContent;
  header.replaceChildren(button);
  button.addEventListener('click', () => {
    const sign = header.ariaSort === 'descending' ? 1 : -1;
    headers.forEach(other => other.removeAttribute('aria-sort'));
    header.ariaSort = sign > 0 ? 'ascending' : 'descending';
    const found = keys([...body.rows].map(row => row.cells[column].textContent));
    const rows = [...body.rows].map((row, place) => [found[place], row]);
    // What has no value stands last, whichever way the rest is sorted.
    rows.sort(([a], [b]) => (a === null) - (b === null) || sign * order(a, b));
    body.append(...rows.map(([, row]) => row));
  });
});
"""
"""Sorts the rows by a column whose name is clicked: the largest first, then the smallest."""


def compare(config: Config) -> None:
    """Carry out ``command=compare``; raises what :func:`compare_runs` does."""
    compare_runs(config.runs, config.compare)


def compare_runs(places: Sequence[str | Path], options: CompareConfig) -> None:
    """Write the tables and plots of runs into ``compare.folder``, and show the table.

    Args:
        places: Folders and patterns of runs.
        options: Of the group ``compare``.

    Raises:
        DataError: there are no results, or a file is none.
        StorageError: the folder cannot be written to.
    """
    rows = summarize(collect(places))
    if options.published:
        rows = beside(rows, published(rows))
    remarks = notes(rows, unfinished(places))
    drawable = find_spec("matplotlib") is not None
    figures = plots(rows) if drawable and options.plots else {}
    folder = Path(options.folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_tables(rows, remarks, figures, options.formats, folder)
        for name, figure in figures.items():
            for picture in options.plots:
                figure.savefig(folder / f"{name}.{picture}")
    except OSError as error:
        reason = f"cannot be written to ({error.strerror})"
        raise StorageError(f"compare.folder={folder} {reason}: choose another folder") from error
    console = plain_console()
    # Markdown as it is: Rich would wrap its lines and read its brackets.
    print(printable(as_markdown(rows, remarks)))
    if options.plots and not drawable:
        console.print(NO_PLOTS)
    console.print(printable(f"Everything is in {folder}"), soft_wrap=True)


def _write_tables(
    rows: Sequence[Row],
    remarks: Sequence[str],
    figures: Mapping[str, Figure],
    formats: Sequence[str],
    folder: Path,
) -> None:
    render = {
        "markdown": lambda: as_markdown(rows, remarks),
        "csv": lambda: as_csv(rows),
        "latex": lambda: as_latex(rows, remarks),
        "html": lambda: PAGE.format(
            table=as_html(rows, remarks), pictures=_pictures(figures), sorting=SORTING
        ),
    }
    for name in formats:
        path = folder / f"comparison.{ENDINGS[name]}"
        path.write_text(printable(render[name]()), encoding="utf-8")


def _pictures(figures: Mapping[str, Figure]) -> str:
    """Return the plots for the inside of the page, so that it can be sent as one file."""
    shown = []
    for name, figure in figures.items():
        content = io.BytesIO()
        figure.savefig(content, format="png")
        data = base64.b64encode(content.getvalue()).decode("ascii")
        shown.append(f'<img alt="{html.escape(name)}" src="data:image/png;base64,{data}">')
    return "\n".join(shown)
