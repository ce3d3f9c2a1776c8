"""From a run that has come to an end, good or bad, to what its page shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from hast_lightning.core.stage import Stage
from hast_lightning.core.transform import Transform
from hast_lightning.quantization.diagnosis import diagnose
from hast_lightning.quantization.fake_quant import quantized_layers
from hast_lightning.records.failure import read_failure
from hast_lightning.records.folder import METRICS_FILE
from hast_lightning.records.result import Result
from hast_lightning.records.results_table import headline, measured_when
from hast_lightning.records.spectrogram import as_pictures
from hast_lightning.report.confusion import confusion_table
from hast_lightning.report.content import (
    Change,
    Curve,
    Difficulties,
    Panel,
    RunReport,
    Seconds,
    Tile,
)
from hast_lightning.report.curves import read_panels
from hast_lightning.report.judged import judged_table
from hast_lightning.report.parts import stage_lines
from hast_lightning.report.pictures import data_addresses
from hast_lightning.report.samples import Harder, Samples, harder_batch, look_at
from hast_lightning.report.settings import (
    early_end,
    exports,
    facts_of,
    key_figures,
    origin,
)
from hast_lightning.runs.assembly import Run
from hast_lightning.tracking.facts import switched_parts

TILES = 12
"""Images in each of the two grids, at most."""


def gather(run: Run, result: Result | None) -> RunReport:
    """Return all that the page says.

    Changes nothing and draws no random numbers. It takes as long as a few student steps.

    Args:
        run: After its last step; in its folder lies ``metrics.csv``.
        result: What was measured; none where nothing was evaluated.
    """
    report = _of_any(run, result)
    if run.network.regresses:
        return report
    names, module = class_names(run), run.module
    samples, harder = look_at(module), harder_batch(module.outcome)
    easy, hard = _tiles(run, samples, names)
    return replace(
        report,
        easy=easy,
        hard=hard,
        looked_at=len(samples.images),
        difficulties=_difficulties(samples, harder),
        change=None if harder is None else Change(harder.word, *harder.losses),
        confusion=None if run.confusion is None else confusion_table(run.confusion, names),
    )


def _of_any(run: Run, result: Result | None) -> RunReport:
    """Return what a report says of any network: also of one without classes and difficulty."""
    student = run.module.student
    return replace(
        outline(run, result),
        figures=key_figures(result) if result else (),
        headline=headline(result) if result else (),
        measured_on=_measured_on(result),
        judged=judged_table(result),
        layers=tuple(diagnose(student)) if run.module.ranges_frozen else (),
        exports=exports(result),
        seconds=_seconds(result),
    )


def outline(run: Run, result: Result | None) -> RunReport:
    """Return what can be said without running a network, and so also of a run that failed."""
    config = run.config
    return RunReport(
        title=config.recipe,
        subtitle=(
            f"{run.network.name} at {run.config.quantizer.widths}{_exceptions(run)}, zero-shot"
        ),
        failure=early_end(run, read_failure(run.folder)),
        facts=facts_of(run),
        stages=stage_lines(run),
        synthetic=run.module.source.synthetic,
        panels=(
            *read_panels(run.folder / METRICS_FILE, _titles(run), _marks(run)),
            *_plots(run),
        ),
        origin=origin(run, result),
        command=run.origin.command,
        versions=run.origin.versions,
    )


def _titles(run: Run) -> dict[str, str]:
    """Return what the curves of terms are called, by ``group/name``."""
    stages = [stage for stage in run.module.stages.values() if isinstance(stage, Stage)]
    return {
        f"{group}/{name}": term.title
        for stage in stages
        for group, terms in stage.all_terms.items()
        for name, term in terms.items()
    }


def _plots(run: Run) -> Iterator[Panel]:
    """Yield what stages have found, drawn over another quantity than iterations."""
    for name, stage in run.module.stages.items():
        for plot in stage.plots():
            curves = tuple(Curve(each, tuple(points)) for each, points in plot.curves.items())
            yield Panel(name, plot.title, curves, x_label=plot.x_label)


def _marks(run: Run) -> tuple[str, ...]:
    """Return what curves on batches of transforms by gradient are called by."""
    parts = [part for _, part in switched_parts(run.config) if isinstance(part, Transform)]
    return tuple(dict.fromkeys(part.mark for part in parts if part.by_gradient))


def _exceptions(run: Run) -> str:
    """Return what to say of layers with other bits, those that a stage chose among them."""
    quantizer = run.config.quantizer
    widths = {layer.weight_quantizer.bits for _, layer in quantized_layers(run.module.student)}
    return ", single layers otherwise" if quantizer.mixed or len(widths) > 1 else ""


def class_names(run: Run) -> tuple[str, ...]:
    """Return the name of each class: the network's own, or its number."""
    numbers = tuple(map(str, range(run.network.num_classes)))
    return run.network.class_names or numbers


def _measured_on(result: Result | None) -> str:
    if result is None:
        return ""
    return f"{result.evaluated_images:,} {result.agreement_on}, {measured_when(result)}"


def _seconds(result: Result | None) -> tuple[Seconds, ...]:
    stages = result.seconds_by_stage if result else {}
    return tuple(Seconds(name, seconds) for name, seconds in stages.items())


def _difficulties(samples: Samples, harder: Harder | None) -> tuple[Difficulties, ...]:
    """Return those of the last step's batch, before and after; else those of some samples."""
    if harder is not None:
        pairs = {"student": harder.of_student, "teacher": harder.of_teacher}
        return tuple(
            Difficulties(network, tuple(before.tolist()), tuple(after.tolist()), harder.word)
            for network, (before, after) in pairs.items()
        )
    columns = {"student": samples.of_student, "teacher": samples.of_teacher}
    return tuple(
        Difficulties(network, tuple(values.tolist()))
        for network, values in columns.items()
        if values is not None
    )


def _tiles(
    run: Run, samples: Samples, names: Sequence[str]
) -> tuple[tuple[Tile, ...], tuple[Tile, ...]]:
    """Return the easiest and the hardest, no image in both; the farthest from the middle first."""
    order = torch.argsort(samples.of_teacher, stable=True).tolist()
    count = min(TILES, len(order) // 2)
    easy, hard = order[:count], order[::-1][:count]
    chosen = samples.images[[*easy, *hard]]
    pictures = data_addresses(*as_pictures(chosen, run.network))
    tiles = [
        _tile(samples, index, picture, names)
        for index, picture in zip([*easy, *hard], pictures, strict=True)
    ]
    return tuple(tiles[:count]), tuple(tiles[count:])


def _tile(samples: Samples, index: int, picture: str, names: Sequence[str]) -> Tile:
    student = samples.student
    return Tile(
        picture,
        names[int(samples.labels[index])],
        names[int(samples.teacher[index])],
        None if student is None else names[int(student[index])],
        float(samples.of_teacher[index]),
    )
