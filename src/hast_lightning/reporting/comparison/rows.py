"""Many runs in one table: mean and deviation over seeds, beside published numbers."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources

from hast_lightning.reporting.comparison.runs import (
    SWITCHES,
    FinishedRun,
    describe,
    parts,
    varied,
)
from hast_lightning.reporting.result import Result

PUBLISHED_FILE = "published.csv"
FULL_PRECISION = (32, 32)
BITS_IN_NAME = re.compile(r"_w(\d+)a(\d+)(?![0-9a-z])")


@dataclass(frozen=True)
class Spread:
    """Mean and sample deviation of some seeds; of one value there is no deviation."""

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
        parts: The parts of the method that are on, in a recipe that switches some; none elsewhere.
        others: What the runs of the recipe differ in beside that.
        seeds: Seeds that were run, each once; none of a published number.
        runs: How many runs; more than there are seeds where some were run again.
        teacher: Top-1 of the full-precision network in percent.
        calibrated: Top-1 before the first student step.
        top1: Top-1 after the last student step.
        agreement: With the teacher.
        seconds: Wall-clock time of a run, all stages.
        source: Where a published number is from.
        recipe: The recipe's own name, whatever the bits.
        basis: What the numbers of rows have to share so that one can be better.
    """

    model: str
    bits: tuple[int, int]
    name: str
    parts: tuple[str, ...] | None = None
    others: str = ""
    seeds: tuple[int, ...] = ()
    runs: int = 0
    teacher: Spread | None = None
    calibrated: Spread | None = None
    top1: Spread | None = None
    agreement: Spread | None = None
    seconds: Spread | None = None
    source: str = ""
    recipe: str = ""
    basis: tuple[object, ...] = ()

    @property
    def settings(self) -> str:
        """Parts and other settings in a few words; nothing where all runs are alike."""
        words = [] if self.parts is None else [" + ".join(self.parts) or "none"]
        return ", ".join([*words, *filter(None, [self.others])])

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
    rows = [replace(row, name=row.recipe) if _is_ambiguous(row, rows) else row for row in rows]
    return sorted(rows, key=lambda row: (row.model, row.bits, row.name, row.settings))


def _is_ambiguous(row: Row, rows: Sequence[Row]) -> bool:
    """Whether another recipe would have the same name at the same bits."""
    place = (row.model, row.bits, row.name)
    return any(
        (other.model, other.bits, other.name) == place and other.recipe != row.recipe
        for other in rows
    )


def title(recipe: str, bits: tuple[int, int]) -> str:
    """The recipe's name, without bits in it that were changed in the run."""
    named = BITS_IN_NAME.search(recipe)
    if named is None or (int(named[1]), int(named[2])) == bits:
        return recipe
    return BITS_IN_NAME.sub("", recipe)


def _rows_of_recipe(runs: Sequence[FinishedRun]) -> list[Row]:
    keys = varied(runs)
    switched = any(key in SWITCHES for key in keys)
    groups: dict[object, list[FinishedRun]] = defaultdict(list)
    for run in runs:
        bits = (run.result.weight_bits, run.result.activation_bits)
        groups[bits, parts(run) if switched else None, describe(run, keys)].append(run)
    return [
        _row(group, parts(group[0]) if switched else None, describe(group[0], keys))
        for group in groups.values()
    ]


def _row(runs: Sequence[FinishedRun], on: tuple[str, ...] | None, others: str) -> Row:
    results = [run.result for run in runs]
    bits = (results[0].weight_bits, results[0].activation_bits)
    return Row(
        results[0].model,
        bits,
        title(results[0].recipe, bits),
        on,
        others,
        tuple(sorted({result.seed for result in results})),
        len(results),
        over_seeds(results, lambda result: result.teacher_top1),
        over_seeds(results, lambda result: result.calibrated_top1),
        over_seeds(results, lambda result: result.quantized_top1),
        over_seeds(results, lambda result: result.teacher_agreement),
        over_seeds(results, lambda result: sum(result.seconds_by_stage.values())),
        recipe=results[0].recipe,
        basis=tuple(runs[0].basis.values()),
    )


def over_seeds(
    results: Iterable[Result], measure: Callable[[Result], float | None]
) -> Spread | None:
    """Mean and deviation over seeds; runs of one seed count once, as their mean.

    They would otherwise pass for independent ones, and make the deviation too small.
    """
    seeds: dict[int, list[float]] = defaultdict(list)
    for result in results:
        if (value := measure(result)) is not None:
            seeds[result.seed].append(value)
    return spread(map(statistics.fmean, seeds.values()))


def spread(values: Iterable[float]) -> Spread | None:
    """Mean and deviation of what was measured; none where nothing was."""
    known = list(values)
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

    Ranked are rows of one basis. Runs without labels are ranked among themselves, by agreement
    with the teacher.
    """
    groups: dict[object, list[Row]] = defaultdict(list)
    for row in rows:
        if row.seeds and row.score is not None:
            groups[row.model, row.bits, row.top1 is not None, row.basis].append(row)
    return {
        row for group in groups.values() if len(group) > 1 for row in group if _leads(row, group)
    }


def _leads(row: Row, group: Sequence[Row]) -> bool:
    return _shown(row) == max(map(_shown, group))


def _shown(row: Row) -> float:
    """To the digits that tables show: what looks the same is equally good."""
    return round(row.score.mean, 2) if row.score else 0.0
