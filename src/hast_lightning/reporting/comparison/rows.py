"""Many runs in one table: mean and deviation over seeds, beside published numbers."""

from __future__ import annotations

import csv
import io
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

from hast_lightning.reporting.comparison.runs import SWITCHES, FinishedRun, describe, varied

PUBLISHED_FILE = "published.csv"
FULL_PRECISION = (32, 32)


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
        settings: What the runs of the recipe differ in.
        seeds: Seeds that were run; none of a published number.
        teacher: Top-1 of the full-precision network in percent.
        calibrated: Top-1 before the first student step.
        top1: Top-1 after the last student step.
        agreement: With the teacher.
        seconds: Wall-clock time of a run, all stages.
        source: Where a published number is from.
        switched: Whether the row is one of an ablation.
    """

    model: str
    bits: tuple[int, int]
    name: str
    settings: str = ""
    seeds: tuple[int, ...] = ()
    teacher: Spread | None = None
    calibrated: Spread | None = None
    top1: Spread | None = None
    agreement: Spread | None = None
    seconds: Spread | None = None
    source: str = ""
    switched: bool = False

    @property
    def score(self) -> Spread | None:
        """What rows are ranked by: top-1, or the agreement where there are no labels."""
        return self.top1 or self.agreement


def summarize(runs: Iterable[FinishedRun]) -> list[Row]:
    """One row for each network, bit width, recipe and set of settings, ordered by them."""
    recipes: dict[tuple[str, str], list[FinishedRun]] = defaultdict(list)
    for run in runs:
        recipes[run.result.model, run.result.recipe].append(run)
    rows = [row for group in recipes.values() for row in _rows_of_recipe(group)]
    return sorted(rows, key=lambda row: (row.model, row.bits, row.name, row.settings))


def _rows_of_recipe(runs: Sequence[FinishedRun]) -> list[Row]:
    configured = [run for run in runs if run.config]
    keys = varied(configured)
    groups: dict[tuple[tuple[int, int], str], list[FinishedRun]] = defaultdict(list)
    for run in runs:
        bits = (run.result.weight_bits, run.result.activation_bits)
        groups[bits, describe(run.config, keys) if run.config else ""].append(run)
    switched = any(key in SWITCHES for key in keys)
    return [_row(bits, settings, group, switched) for (bits, settings), group in groups.items()]


def _row(bits: tuple[int, int], settings: str, runs: Sequence[FinishedRun], switched: bool) -> Row:
    results = [run.result for run in runs]
    return Row(
        results[0].model,
        bits,
        results[0].recipe,
        settings,
        tuple(sorted(result.seed for result in results)),
        spread([result.teacher_top1 for result in results]),
        spread([result.calibrated_top1 for result in results]),
        spread([result.quantized_top1 for result in results]),
        spread([result.teacher_agreement for result in results]),
        spread([sum(result.seconds_by_stage.values()) for result in results]),
        switched=switched and bool(runs[0].config),
    )


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean and deviation of what was measured; none where nothing was."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    if len(set(known)) == 1:  # of a single seed, or of the teacher, which is always the same
        return Spread(known[0])
    return Spread(statistics.mean(known), statistics.stdev(known))


def published(rows: Sequence[Row]) -> list[Row]:
    """What papers report for the networks of ``rows``, at the same bit widths.

    Their teachers differ from ours, and most chose the best epoch on the test labels: context,
    not a competition on equal terms. The full-precision networks come along.
    """
    models = {row.model for row in rows}
    wanted = {(row.model, row.bits) for row in rows}
    wanted |= {(model, FULL_PRECISION) for model in models}
    text = (resources.files(__package__) / PUBLISHED_FILE).read_text(encoding="utf-8")
    found = map(_published_row, csv.DictReader(io.StringIO(text)))
    return [row for row in found if (row.model, row.bits) in wanted]


def _published_row(line: dict[str, str]) -> Row:
    return Row(
        line["model"],
        (int(line["weight_bits"]), int(line["activation_bits"])),
        line["method"],
        top1=Spread(float(line["top1"])),
        source=line["source"],
    )


def best(rows: Sequence[Row]) -> set[Row]:
    """The best rows of each network and bit width, all of them where several are; only ours.

    Runs without labels are ranked among themselves, by agreement with the teacher.
    """
    groups: dict[tuple[str, tuple[int, int], bool], list[Row]] = defaultdict(list)
    for row in rows:
        if row.seeds and row.score is not None:
            groups[row.model, row.bits, row.top1 is not None].append(row)
    return {
        row for group in groups.values() if len(group) > 1 for row in group if _leads(row, group)
    }


def _leads(row: Row, group: Sequence[Row]) -> bool:
    return _shown(row) == max(map(_shown, group))


def _shown(row: Row) -> float:
    """To the digits that tables show: what looks the same is equally good."""
    return round(row.score.mean, 2) if row.score else 0.0
