"""The closing table of a run: full precision, calibrated only, quantized."""

from __future__ import annotations

from typing import NamedTuple

from rich import box
from rich.markup import escape
from rich.table import Table

from hast_lightning.core.bits import FLOAT_BITS
from hast_lightning.records.printing import as_it_is, printable
from hast_lightning.records.result import EVALUATION, Result

FULL_PRECISION_BITS = "32/32"


def results_table(result: Result) -> Table:
    """Return a table that sets the quantized network beside the one it came from.

    Without labelled data there is no accuracy and the column is left out; the agreement with
    the full-precision network stands for it.
    """
    labelled = result.quantized_top1 is not None
    told = FLOAT_BITS in (result.weight_bits, result.activation_bits) or result.mixed
    words = f"; {result.bits}" if told else ""
    caption = f"{result.evaluated_images:,} {result.agreement_on}, {measured_when(result)}"
    table = Table(
        title=as_it_is(f"{result.recipe}, seed {result.seed}", "table.title"),
        caption=as_it_is(f"{caption}{words}{_perplexities(result)}", "table.caption"),
        # Narrow, so that five columns fit into 80 characters.
        box=box.SIMPLE_HEAVY,
    )
    table.add_column("network", no_wrap=True)
    measure = "agreement %" if result.output_error is None else "error"
    for name in ("top-1 %",) * labelled + (measure, "bits W/A", "size (smaller)"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in headline(result):
        accuracies = (_percent(row.top1),) * labelled
        measured = _percent(row.agreement) if result.output_error is None else _error(row.error)
        name = escape(printable(row.name))
        table.add_row(name, *accuracies, measured, row.bits, row.size, style=row.style)
    return table


def measured_when(result: Result) -> str:
    """Return which students the rows of a result are of."""
    if result.handed_back_earlier:
        return "after the last student step, and as handed back"
    return "last student step"


class HeadlineRow(NamedTuple):
    """One of the networks: style in a terminal, name, percentages, bits W/A, size.

    Of outputs that are values and no classes the error stands for the percentages.
    """

    style: str
    name: str
    top1: float | None
    agreement: float | None
    bits: str
    size: str
    error: float | None = None


def headline(result: Result) -> tuple[HeadlineRow, ...]:
    """Return the networks that a run compares, as numbers and text.

    The names hold for every recipe; the recipe itself is in the title.
    """
    names = ("calibrated ranges only", "calibrated and trained")
    from_scratch = result.weight_bits == result.activation_bits == FLOAT_BITS and not result.mixed
    if result.activation_bits == FLOAT_BITS:
        names = ("before training", "trained from scratch" if from_scratch else "trained")
    bits = f"{result.weight_bits}/{result.activation_bits}"
    ratio = result.teacher_bytes / max(result.quantized_bytes, 1)
    float_size = readable_size(result.teacher_bytes)
    size = f"{readable_size(result.quantized_bytes)} ({ratio:.1f}x)"
    before, after = result.calibrated_top1, result.quantized_top1
    agreed_before, agreed_after = result.calibrated_agreement, result.teacher_agreement
    full = ("full precision", result.teacher_top1, None, FULL_PRECISION_BITS, float_size)
    if result.teachers:
        # The size of one of them would be no size of what has this accuracy.
        alone = f"{len(result.teachers)} teachers together"
        full = (alone, result.teacher_top1, None, FULL_PRECISION_BITS, "-")
    last = "" if result.handed_back_earlier else "bold"
    rows = [
        HeadlineRow("", *full),
        # A network of new weights is nothing to compare with.
        *[HeadlineRow("", names[0], before, agreed_before, bits, size, _first_error(result))]
        * (not from_scratch),
        HeadlineRow(last, names[1], after, agreed_after, bits, size, result.output_error),
    ]
    if result.handed_back_earlier:
        name, kept = f"kept: {result.kept_stage}", result.kept_agreement
        error = result.judged[result.kept_stage].get(EVALUATION, {}).get("error")
        rows.append(HeadlineRow("bold", name, result.kept_top1, kept, bits, size, error))
    return tuple(rows)


def _first_error(result: Result) -> float | None:
    """Return the error behind the first of several stages."""
    judged = list(result.judged.values())
    return judged[0].get(EVALUATION, {}).get("error") if len(judged) > 1 else None


def readable_size(size: int) -> str:
    """Return ``size`` in B, KB or MB, in powers of 1000: ``1_234_567`` is ``1.23 MB``."""
    if size < 1000:
        return f"{size} B"
    value, unit = (size / 1e3, "KB") if size < 999_950 else (size / 1e6, "MB")
    return f"{value:.2f} {unit}" if value < 10 else f"{value:.1f} {unit}"


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _perplexities(result: Result) -> str:
    """Return the perplexities of both networks; empty where there are none."""
    if result.quantized_perplexity is None or result.teacher_perplexity is None:
        return ""
    return f"; perplexity {result.quantized_perplexity:.3f} of {result.teacher_perplexity:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
