"""Notes below the table of a comparison: a line each of what numbers do not say."""

from __future__ import annotations

from collections.abc import Sequence

from hast_lightning.compare.rows import ERROR, TOP1, Row, agreement_of_ranks

WITHOUT_SYNTHESIS = "†"
"""Marks seconds of runs whose images were there already."""
PAPERS = (
    "Published numbers are of other teachers, and mostly of the epoch that was best on the test "
    "labels; ours are of the last step."
)
STUDY = "experiments/methods_cifar10_resnet20"
KNOWN_RANKS = {
    ("ResNet-20 for CIFAR-10", STUDY): {
        "W3A3": "0.94 over 33 rows of 17 methods, 0.97 over the best row of each, on images of "
        "judge 2",
        "W4A4": "0.93 over 16 rows of 14 methods, 0.93 over the best row of each, on images of "
        "judge 2",
    },
    ("MobileNetV1 x0.25 for ImageNet", "experiments/methods_mobilenetv1"): {
        "W5A5": "0.96 over 7 rows of 5 methods, 0.90 over the best row of each, on images of "
        "judge 2",
    },
}
"""Rank correlations with top-1 where there were labels: by network and study, and by bits.

``command=compare runs=<study>`` prints them below its table.
"""
UNLABELED = (
    f"Rows without labels are ranked by '{ERROR}'. Where there were labels, its rank correlation "
    "with top-1 (1: the same order, 0: none) was "
    + "; ".join(
        f"on {network} " + "; ".join(f"at {bits} {ranks}" for bits, ranks in found.items())
        for (network, _), found in KNOWN_RANKS.items()
    )
    + ". Several rows of a method are its parts or settings. The error favors methods whose images "
    "are made as the judge's own: from smooth noise, with relative statistics. "
    f"{STUDY}/README.md has lower figures of earlier rows."
)
NO_SYNTHESIS = f"{WITHOUT_SYNTHESIS} Without a synthesis: the images were there already."


def notes(rows: Sequence[Row], unfinished: Sequence[str] = ()) -> list[str]:
    """Return the notes that apply.

    Args:
        rows: Of the table.
        unfinished: Folders of runs that left no result, each with how it ended.
    """
    repeats = [name for row in rows for name in row.repeats]
    mixed = [f"{_label(row)}: {', '.join(row.versions)}" for row in rows if row.versions]
    found: list[str] = []
    if repeats:
        start = "A seed counts once in a row, the run that is found first. Left out: "
        found.append(start + ", ".join(repeats))
    found += [f"Left out, without a result: {name}" for name in unfinished]
    if mixed:
        found.append(f"Runs of several versions in one row: {'; '.join(mixed)}")
    if any(row.without_synthesis for row in rows):
        found.append(NO_SYNTHESIS)
    found += [
        f"'{ERROR}' ranks {model} at {bits} as '{TOP1}' does with a rank correlation "
        f"(1: the same order, 0: none) of {ranks}"
        for (model, bits), ranks in agreement_of_ranks(rows).items()
    ]
    if any(row.ranked_by and row.ranked_by[0] == ERROR for row in rows):
        found.append(UNLABELED)
    if any(not row.seeds for row in rows):
        found.append(PAPERS)
    return found


def _label(row: Row) -> str:
    return " ".join(part for part in (row.name, row.listed_bits, str(row.settings)) if part)
