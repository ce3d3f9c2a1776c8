"""Prints the table of a study: mean and deviation over the seeds of every recipe.

    python experiments/tabulate.py experiments/cifar10_resnet20

reads every result below the folder and prints Markdown, with published numbers below.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hast_lightning.reporting.comparison import as_markdown, collect, published, summarize


def table(folder: Path) -> str:
    """The Markdown table of every result below ``folder``."""
    rows = summarize(collect([folder]))
    return as_markdown([*rows, *published({row.model for row in rows})])


if __name__ == "__main__":
    print(table(Path(sys.argv[1])), end="")
