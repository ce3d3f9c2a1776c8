"""The files that a run exported: size, agreement with the student, speed."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table

from hast_lightning.records.result import ExportRecord
from hast_lightning.records.results_table import readable_size


def exports_table(records: Mapping[str, ExportRecord]) -> Table:
    """Return a table of one row a file.

    Args:
        records: By format, as in :class:`~hast_lightning.records.result.Result`; at least one.
    """
    images = max(record["images"] for record in records.values())
    table = Table(
        caption=f"agreement with the student on {images:,} images; one image on the CPU",
        box=box.SIMPLE_HEAVY,
    )
    table.add_column("file", no_wrap=True)
    for name in ("size", "agreement %", "ms", "ms in float32"):
        table.add_column(name, justify="right", no_wrap=True)
    for record in records.values():
        table.add_row(
            record["file"],
            readable_size(record["bytes"]),
            "-" if record["agreement"] is None else f"{record['agreement']:.2f}",
            f"{record['milliseconds']:.2f}",
            f"{record['float_milliseconds']:.2f}",
        )
    return table
