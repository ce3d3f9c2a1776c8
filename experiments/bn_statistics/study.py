"""What images and students lose that are matched to means or to variances alone, on the digits.

``python -m experiments.bn_statistics.study run`` goes through the runs that have no result yet;
``... table`` prints what they say.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from experiments.resumable import carry_out

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


def table() -> None:
    """Print one row a run: top-1 after each stage, and the agreement of the last step."""
    for path in sorted(HERE.glob("results/*/result.json")):
        r = json.loads(path.read_text())
        after = {stage: judged["evaluation"]["top1"] for stage, judged in r["judged"].items()}
        stages = ", ".join(f"{stage} {top1:.2f}" for stage, top1 in after.items())
        print(f"{path.parent.name}: {stages}; agreement {r['teacher_agreement']:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "table"))
    if parser.parse_args().what == "table":
        sys.exit(table())
    carry_out(runs(), HERE, ())
