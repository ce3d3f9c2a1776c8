"""What images and students lose that are matched to means or to variances alone, on the digits.

``python -m experiments.bn_statistics.study run`` goes through the runs that have no result yet;
``... table`` prints what they say.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from experiments.resumable import carry_out, print_stages

HERE = Path(__file__).resolve().parent
COMMON = (
    *("method=hast", "model=digits", "data=digits", "quantizer=minmax", "quantizer.bits=3"),
    *("schedule=demo", "seed=0", "trainer.threads=1", "export=none", "report=false"),
    "callbacks.progress=false",
)
STAGES = ("synthesis", "calibration")
SETTINGS: dict[str, str] = {
    "both": "",
    "means": "variance_weight=0",
    "variances": "mean_weight=0",
    "deviations": "spread=deviation",
}


def runs() -> Iterator[tuple[str, list[str]]]:
    """Yield name and words of each run: the same setting in both stages that make images."""
    for name, setting in SETTINGS.items():
        changes = [f"stages.{stage}.terms.bns.{setting}" for stage in STAGES if setting]
        yield f"{name}_w3a3_seed0", [*COMMON, *changes]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "table"))
    if parser.parse_args().what == "table":
        sys.exit(print_stages(HERE))
    carry_out(runs(), HERE, ())
