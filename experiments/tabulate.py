"""Prints the table of a study: mean and deviation over the seeds of every recipe.

    python experiments/tabulate.py experiments/cifar10_resnet20

reads every ``*.json`` below the folder and prints Markdown.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from pathlib import Path

from hast_lightning.reporting.result import Result

HEADER = """\
| recipe | seeds | W/A | teacher | calibrated | quantized, last step | agreement | minutes |
| --- | --- | --- | --- | --- | --- | --- | --- |"""


def spread(values: list[float | None]) -> str:
    """Mean, and the sample deviation where there are several; ``-`` without labels."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{statistics.mean(known):.2f}"
    return f"{mean} ± {statistics.stdev(known):.2f}" if len(known) > 1 else mean


def row(recipe: str, results: list[Result]) -> str:
    """One recipe as a line of the table."""
    first = results[0]
    cells = [
        recipe,
        ", ".join(str(result.seed) for result in results),
        f"{first.weight_bits}/{first.activation_bits}",
        spread([result.teacher_top1 for result in results[:1]]),
        spread([result.calibrated_top1 for result in results]),
        spread([result.quantized_top1 for result in results]),
        spread([result.teacher_agreement for result in results]),
        f"{statistics.mean(sum(r.seconds_by_stage.values()) for r in results) / 60:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def table(folder: Path) -> str:
    """The Markdown table of every result below ``folder``."""
    by_recipe: dict[str, list[Result]] = defaultdict(list)
    for path in sorted(folder.rglob("*.json")):
        result = Result.read(path)
        by_recipe[result.recipe].append(result)
    rows = [row(recipe, by_recipe[recipe]) for recipe in sorted(by_recipe)]
    return "\n".join([HEADER, *rows])


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
