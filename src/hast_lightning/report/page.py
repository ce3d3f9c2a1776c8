"""The page itself: one HTML file that needs nothing else and asks for nothing."""

from __future__ import annotations

import functools
import logging
import math

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from hast_lightning.quantization.diagnosis import ACTIVATION, WEIGHT, LayerDiagnosis
from hast_lightning.records.folder import REPORT_FILE, RESULT_FILE, write_whole
from hast_lightning.records.result import Result
from hast_lightning.report import charts
from hast_lightning.report.content import RunReport
from hast_lightning.report.gather import gather, outline
from hast_lightning.report.settings import duration
from hast_lightning.runs.assembly import Run

TEMPLATE = "report.html.j2"

_log = logging.getLogger(__name__)


def write_report(run: Run, result: Result | None) -> None:
    """Leave ``report.html`` in the folder of a run.

    Whatever goes wrong becomes a warning: the result is there already, and no page is worth it.
    """
    try:
        write_whole(run.folder / REPORT_FILE, render(gather(run, result)))
    except Exception as error:
        _log.warning("%s was not written: %s: %s", REPORT_FILE, type(error).__name__, error)


def write_failed_report(run: Run) -> None:
    """Leave ``report.html`` of a run that ended in an error, with the error on top.

    Without a result no network is run, since one may be what failed. Whatever goes wrong here is
    passed over in silence: the error that ended the run is what the user has to read.
    """
    try:
        result = run.folder / RESULT_FILE
        content = gather(run, Result.read(result)) if result.exists() else outline(run, None)
        write_whole(run.folder / REPORT_FILE, render(content))
    except Exception as error:
        _log.debug("%s was not written: %s: %s", REPORT_FILE, type(error).__name__, error)


def render(report: RunReport) -> str:
    """Return the page as text. Everything that is not ours is escaped."""
    stages = dict.fromkeys(panel.stage for panel in report.panels)
    return _template().render(
        report=report,
        stages={
            stage: [charts.line_chart(panel) for panel in report.panels if panel.stage == stage]
            for stage in stages
        },
        histograms=[charts.histogram(values) for values in report.difficulties],
        layers={kind: _rows(report.layers, kind) for kind in (WEIGHT, ACTIVATION)},
        total_seconds=sum(stage.seconds for stage in report.seconds),
        chart=charts,
    )


@functools.cache
def _template() -> Template:
    """Return the compiled template, which the jobs of a sweep have in common."""
    environment = Environment(
        loader=PackageLoader("hast_lightning.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = charts.number
    environment.filters["duration"] = duration
    return environment.get_template(TEMPLATE)


def _rows(layers: tuple[LayerDiagnosis, ...], kind: str) -> list[dict[str, object]]:
    """Return the tensors of one kind, with the place of their range among all, from 0 to 100."""
    chosen = [layer for layer in layers if layer.kind == kind]
    lows = [layer.low for layer in chosen if layer.low is not None]
    highs = [layer.high for layer in chosen if layer.high is not None]
    low, high = min([0.0, *lows]), max([0.0, *highs])
    extent = (high - low) or 1.0
    worst = max([layer.error or 0.0 for layer in chosen], default=0.0) or 1.0
    rows: list[dict[str, object]] = []
    for layer in chosen:
        row: dict[str, object] = {"layer": layer, "zero": 100 * -low / extent, "range": None}
        if layer.low is not None and layer.high is not None:
            row["range"] = (
                100 * (layer.low - low) / extent,
                100 * (layer.high - layer.low) / extent,
            )
        row["share"] = 100 * (layer.error or 0.0) / worst
        row["decibels"] = -10 * math.log10(layer.error) if layer.error else None
        rows.append(row)
    return rows
