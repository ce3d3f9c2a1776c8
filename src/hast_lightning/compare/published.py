"""Published numbers, each with its source, beside ours."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from importlib import resources

from hast_lightning.compare.rows import Row, Spread

PUBLISHED_FILE = "published.csv"
FULL_PRECISION = (32, 32)


def published(rows: Sequence[Row]) -> list[Row]:
    """Return what papers report for the networks of ``rows``, at the same bit widths.

    Their teachers differ from ours, and most chose the best epoch on the test labels: context,
    not a competition on equal terms. The full-precision networks come along.
    """
    models = {row.model for row in rows}
    wanted = {(row.model, row.bits) for row in rows}
    wanted |= {(model, FULL_PRECISION) for model in models}
    return [row for row in all_published() if (row.model, row.bits) in wanted]


def all_published() -> list[Row]:
    """Return what papers report, for all networks and bit widths."""
    text = (resources.files(__package__) / PUBLISHED_FILE).read_text(encoding="utf-8")
    return [_published_row(line) for line in csv.DictReader(io.StringIO(text))]


def beside(ours: Sequence[Row], papers: Sequence[Row]) -> list[Row]:
    """Return ours and below them published rows of the same network and bits, in their order."""
    return sorted([*ours, *papers], key=lambda row: (row.model, row.bits))


def _published_row(line: dict[str, str]) -> Row:
    return Row(
        line["model"],
        (int(line["weight_bits"]), int(line["activation_bits"])),
        line["method"],
        top1=Spread(float(line["top1"])),
        source=line["source"],
    )
