"""The best results of each method in the experiments of a checkout."""

from __future__ import annotations

from collections import defaultdict

from hast_lightning.compare.rows import Row, summarize
from hast_lightning.compare.runs import collect
from hast_lightning.config import config_folder


def measured_here() -> dict[str, list[str]]:
    """Return the best top-1 of each method on each network at each bit width, by method.

    Empty where the package is installed: experiments are in a checkout alone.
    """
    folder = config_folder().parent / "experiments"
    if not folder.is_dir():
        return {}
    best: dict[str, dict[tuple[str, str], Row]] = defaultdict(dict)
    for row in summarize(collect([folder])):
        place, method = (row.model, row.widths), row.method
        if row.top1 is None:
            continue
        known = best[method].get(place)
        if known is None or known.top1 is None or known.top1.mean < row.top1.mean:
            best[method][place] = row
    return {method: [_text(row) for row in rows.values()] for method, rows in best.items()}


def _text(row: Row) -> str:
    return f"{row.top1} {row.widths} {row.model}"
