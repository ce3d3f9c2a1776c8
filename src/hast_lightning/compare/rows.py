"""Many runs in one table: mean and deviation over seeds."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hast_lightning.compare.recipes import BITS_IN_NAME, method_of
from hast_lightning.compare.runs import FinishedRun
from hast_lightning.compare.settings import Settings, distinguish
from hast_lightning.core.bits import Widths
from hast_lightning.records.result import EVALUATION, Result

# What a reader of numbers has to know to be the same: versions of the rest move them little.
VERSIONS_SHOWN = ("hast_lightning", "torch")
TOP1, AGREEMENT, ERROR = "top-1, last step", "agreement", "error, no labels"
"""Columns that rows may be ranked by."""
FEWEST_TO_RANK = 4
"""Rows of which a rank correlation says something."""


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
    """A method on one network at one bit width with one set of settings, or a published number.

    Attributes:
        model: Name of the network.
        bits: Of weights and of activations.
        mixed: Single layers have other bits than these.
        method: Its name; of results of versions that had no names for methods, what their
            recipe says today, empty where there is no such recipe.
        recipe: Name of the recipe; empty of a published number.
        budget: Name of the schedule.
        settings: What the runs of the recipe differ in.
        quantizer: Its name; empty where no configuration tells.
        seeds: Seeds that were run, each once; none of a published number.
        teacher: Top-1 of the full-precision network in percent.
        calibrated: Top-1 before the first student step.
        top1: Top-1 after the last student step.
        agreement: With the teacher.
        error: Of the logits after the last step relative to their spread, on images that no run
            trained on and no method made; without labels.
        judge: Version of those images, the latest of the runs, whose errors ``error`` is of; rows
            are ranked by it among those of the same.
        output_error: Of networks that put out values and no classes.
        perplexity: Of networks of tokens, after the last step.
        images: Images that it was all measured on.
        measured_on: Weights and images: rows are ranked among those of the same.
        seconds: Wall-clock time of a run, all stages.
        stages: The stages that ``seconds`` hold.
        course: Seconds since the start and top-1, or agreement, at the end of each stage behind
            which the students of all seeds were judged; means over the seeds.
        without_synthesis: The images were there already, so that the seconds are not of a whole
            run.
        source: Where a published number is from.
        repeats: Runs that repeat a seed of the row, and so do not count.
        versions: Packages of which the row's runs had several versions.
    """

    model: str
    bits: tuple[int, int]
    method: str
    recipe: str = ""
    budget: str = ""
    settings: Settings = field(default_factory=Settings)
    quantizer: str = ""
    seeds: tuple[int, ...] = ()
    teacher: Spread | None = None
    calibrated: Spread | None = None
    top1: Spread | None = None
    agreement: Spread | None = None
    error: Spread | None = None
    judge: int = 0
    output_error: Spread | None = None
    perplexity: Spread | None = None
    mixed: bool = False
    images: int | None = None
    measured_on: tuple[str, ...] = ()
    seconds: Spread | None = None
    stages: tuple[str, ...] = ()
    course: tuple[tuple[float, float], ...] = ()
    without_synthesis: bool = False
    source: str = ""
    repeats: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()

    @property
    def listed_bits(self) -> str:
        """Return the bits of weights and activations as tables have them: ``3/3``."""
        return f"{self.bits[0]}/{self.bits[1]}{' mixed' * self.mixed}"

    @property
    def score(self) -> Spread | None:
        """Return what is drawn: top-1, or the agreement where there are no labels."""
        return self.top1 or self.agreement

    @property
    def ranked_by(self) -> tuple[str, float] | None:
        """Return the column that rows are ranked by, and the value, the larger the better.

        Top-1; where there are no labels the error on images of nobody's, since the agreement is on
        samples that each method made itself. To the digits that are shown: what looks the same
        is equally good.
        """
        if self.top1 is None and self.error is not None:
            return ERROR, -round(self.error.mean, 2)
        if self.score is None:
            return None
        return AGREEMENT if self.top1 is None else TOP1, round(self.score.mean, 2)

    @property
    def widths(self) -> str:
        """Return the bits in one word, and that they are mixed where they are."""
        return f"{Widths(*self.bits).short}{', mixed' * self.mixed}"

    @property
    def title(self) -> str:
        """Return the recipe, with the bits where they were set to others than it is named after.

        Empty where it is named after method, network and bits, which are said anyway.
        """
        weights, activations = self.bits
        if self.recipe == f"{self.method}_{self.model}_w{weights}a{activations}":
            return ""
        return title(self.recipe, self.bits)

    @property
    def name(self) -> str:
        """Return what the row is called in one word: its recipe, or its method."""
        return self.title or self.method


def summarize(runs: Iterable[FinishedRun]) -> list[Row]:
    """Return a row for each network, bit width, method, recipe and set of settings, in order."""
    groups: dict[tuple[str, ...], list[FinishedRun]] = defaultdict(list)
    for run in runs:
        result = run.result
        groups[result.model, result.method, result.budget, result.recipe].append(run)
    rows = [row for group in groups.values() for row in _rows_of_recipe(group)]
    return sorted(rows, key=_order)


def _order(row: Row) -> tuple[object, ...]:
    return row.model, row.bits, row.mixed, row.method, row.title, row.budget, str(row.settings)


def _rows_of_recipe(runs: Sequence[FinishedRun]) -> list[Row]:
    groups: dict[tuple[int, int, bool, Settings], list[FinishedRun]] = defaultdict(list)
    for run, settings in zip(runs, distinguish(runs), strict=True):
        result = run.result
        groups[result.weight_bits, result.activation_bits, result.mixed, settings].append(run)
    return [_row(settings, group) for (*_, settings), group in groups.items()]


def _row(settings: Settings, runs: Sequence[FinishedRun]) -> Row:
    counted = _first_of_each_seed(runs)
    results = [run.result for run in counted]
    first = results[0]
    judge = max(result.judge_version for result in results)
    stages = _most_stages(results)
    timed = [run for run in counted if stages and set(run.result.seconds_by_stage) == set(stages)]
    config = counted[0].config
    return Row(
        first.model,
        (first.weight_bits, first.activation_bits),
        first.method or method_of(first.recipe),
        first.recipe,
        first.budget,
        settings,
        quantizer=config.quantizer.name if config else "",
        seeds=tuple(sorted(result.seed for result in results)),
        teacher=_same_for_all([result.teacher_top1 for result in results]),
        calibrated=spread([result.calibrated_top1 for result in results]),
        top1=spread([result.quantized_top1 for result in results]),
        agreement=spread([result.teacher_agreement for result in results]),
        # Errors of former judges are on other images, and so no seeds of the same number.
        error=spread(r.error_without_labels for r in results if r.judge_version == judge),
        judge=judge,
        output_error=spread([result.output_error for result in results]),
        perplexity=spread([result.quantized_perplexity for result in results]),
        mixed=first.mixed,
        images=first.evaluated_images,
        measured_on=(first.model_checksum, str(first.evaluated_images), first.agreement_on),
        seconds=spread([sum(run.result.seconds_by_stage.values()) for run in timed]),
        stages=stages,
        course=_course([run.result for run in timed]),
        without_synthesis=bool(timed) and all(run.loaded for run in timed),
        repeats=tuple(f"{run.name} (seed {run.result.seed})" for run in runs if run not in counted),
        versions=_mixed_versions(results),
    )


def title(recipe: str, bits: tuple[int, int]) -> str:
    """Return a recipe, and the bits where they were set to others than it is named after."""
    named = BITS_IN_NAME.search(recipe)
    if named is None or (int(named[1]), int(named[2])) == bits:
        return recipe
    return f"{recipe} at {Widths(*bits)}"


def _first_of_each_seed(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Return the first run of each seed: another one would only shrink the deviation."""
    first: dict[int, FinishedRun] = {}
    for run in runs:
        first.setdefault(run.result.seed, run)
    return list(first.values())


def _most_stages(results: Sequence[Result]) -> tuple[str, ...]:
    """Return the stages of the longest runs: one that loaded its images is not timed with those."""
    return max((tuple(result.seconds_by_stage) for result in results), key=len)


def _course(results: Sequence[Result]) -> tuple[tuple[float, float], ...]:
    """Return seconds and score behind each stage that all runs judged."""
    points: list[tuple[float, float]] = []
    for stage in results[0].judged if results else ():
        scores = [_score_behind(result, stage) for result in results]
        ends = [_seconds_until(result, stage) for result in results]
        if None not in scores and None not in ends:
            points.append((statistics.mean(_known(ends)), statistics.mean(_known(scores))))
    return tuple(points)


def _score_behind(result: Result, stage: str) -> float | None:
    found = result.judged.get(stage, {}).get(EVALUATION, {})
    return found.get("top1", found.get("agreement"))


def _seconds_until(result: Result, stage: str) -> float | None:
    """Return the seconds from the start to the end of a stage."""
    names = list(result.seconds_by_stage)
    if stage not in names:
        return None
    return sum(result.seconds_by_stage[name] for name in names[: names.index(stage) + 1])


def _mixed_versions(results: Sequence[Result]) -> tuple[str, ...]:
    seen = {
        package: {result.versions.get(package, "unknown") for result in results}
        for package in VERSIONS_SHOWN
    }
    return tuple(
        f"{package} {', '.join(sorted(versions))}"
        for package, versions in seen.items()
        if len(versions) > 1
    )


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def spread(values: Iterable[float | None]) -> Spread | None:
    """Return mean and deviation of what was measured; none where nothing was."""
    known = _known(values)
    if not known:
        return None
    return Spread(statistics.mean(known), statistics.stdev(known) if len(known) > 1 else None)


def _same_for_all(values: Sequence[float | None]) -> Spread | None:
    """Return the value of the teacher, which seeds change in the last bits of a float at most."""
    known = _known(values)
    return Spread(known[0]) if known and max(known) - min(known) < 0.005 else spread(known)


def best(rows: Sequence[Row]) -> set[Row]:
    """Return the best rows of each network and bit width, all of them where several are; only ours.

    Runs without labels are ranked among themselves, and so are runs on other weights, on other
    images, or with another judge.
    """
    groups: dict[tuple[object, ...], list[tuple[float, Row]]] = defaultdict(list)
    for row in rows:
        if row.seeds and row.ranked_by is not None:
            column, value = row.ranked_by
            judge = row.judge if column == ERROR else 0
            place = (row.model, row.bits, row.mixed, column, judge, row.measured_on)
            groups[place].append((value, row))
    return {
        row
        for group in groups.values()
        if len(group) > 1
        for value, row in group
        if value == max(value for value, _ in group)
    }


@dataclass(frozen=True)
class Ranks:
    """How well the error without labels ranks rows as top-1 does.

    Attributes:
        correlation: Spearman's of the negative error with top-1, over all rows.
        rows: Their number; several may be settings of one method.
        of_methods: The same over the row of each method with the best top-1; none where they are
            fewer than four.
        methods: Their number.
        judge: Version of the images that the error is on.
    """

    correlation: float
    rows: int
    of_methods: float | None
    methods: int
    judge: int

    def __str__(self) -> str:
        methods = f"{self.methods} method{'s' * (self.methods != 1)}"
        text = f"{self.correlation:.2f} over {self.rows} rows of {methods}"
        if self.methods < self.rows and self.of_methods is not None:
            text += f", {self.of_methods:.2f} over the best row of each"
        return f"{text}, on images of judge {self.judge}"


def agreement_of_ranks(rows: Sequence[Row]) -> dict[tuple[str, str], Ranks]:
    """Return how well the error without labels ranks as top-1 does, by network and bits.

    Over four rows at least, of the same weights, images and judge: of several judges those of the
    latest, then the most.
    """
    groups: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row.seeds and row.top1 is not None and row.error is not None:
            groups[row.judge, row.model, row.bits, row.mixed, row.measured_on].append(row)
    enough = [group for group in groups.values() if len(group) >= FEWEST_TO_RANK]
    return {
        (group[0].model, group[0].widths): _ranks(group)
        for group in sorted(enough, key=lambda group: (group[0].judge, len(group)))
    }


def _ranks(rows: Sequence[Row]) -> Ranks:
    pairs = [(-row.error.mean, row.top1.mean) for row in rows if row.error and row.top1]
    named = zip(rows, pairs, strict=True)
    # The last of a method is its best.
    best = {
        row.method or row.name: pair for row, pair in sorted(named, key=lambda each: each[1][1])
    }
    of_methods = _correlation([*best.values()]) if len(best) >= FEWEST_TO_RANK else None
    return Ranks(_correlation(pairs), len(rows), of_methods, len(best), rows[0].judge)


def _correlation(pairs: Sequence[tuple[float, float]]) -> float:
    import torch
    from torchmetrics.functional import spearman_corrcoef

    return float(spearman_corrcoef(*torch.tensor(pairs).T))
