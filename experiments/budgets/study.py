"""What a minute, ten minutes and an hour give, ResNet-20 for CIFAR-10.

``CIFAR=<folder> python -m experiments.budgets.study run`` goes through the runs that have no result
yet; ``... table`` prints what they say. ``$CIFAR`` holds the two files that README.md names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from experiments.resumable import command, files_in

HERE = Path(__file__).resolve().parent
FILES = ("resnet20-12fca82f.th", "cifar10_test_first1017.npz")
COMMON = (
    *("model=resnet20_cifar10", f"model.checkpoint={FILES[0]}", "data=npz"),
    *(f"data.path={FILES[1]}", "trainer.channels_last=true", "trainer.threads=1"),
    *("trainer.precision=auto", "export=none", "report=false", "callbacks.progress=false"),
    "seed=0",
)
RUNS = (
    *(("without_training", "one_minute", bits, ("quantizer=mse",)) for bits in (4, 3, 8)),
    ("reconstruct", "ten_minutes", 3, ("quantizer=lsq",)),
    ("recommended", "ten_minutes", 3, ("quantizer=lsq", "quantizer.ranges.lr_multiplier=5")),
    ("recommended", "one_hour", 3, ("quantizer=lsq", "quantizer.ranges.lr_multiplier=5")),
)
"""Method, budget, bits of weights and activations, words of the method."""


def runs() -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the words of every run."""
    for method, budget, bits, more in RUNS:
        words = [f"method={method}", f"schedule={budget}", f"quantizer.bits={bits}"]
        yield f"{method}_{budget}_w{bits}a{bits}_seed0", [*words, *COMMON, *more]


def table() -> None:
    """Print one row a run."""
    print("| method | budget | W/A | minutes | GB | calibrated | last step | agreement |")
    for name, _ in runs():
        path = HERE / "results" / name / "result.json"
        if path.exists():
            r = json.loads(path.read_text())
            minutes = sum(r["seconds_by_stage"].values()) / 60
            cells = [f"{minutes:.1f}", f"{r['peak_memory_bytes'] / 1e9:.1f}"]
            figures = ("calibrated_top1", "quantized_top1", "teacher_agreement")
            cells += [f"{r[figure]:.2f}" for figure in figures]
            bits = f"{r['weight_bits']}/{r['activation_bits']}"
            print("|", " | ".join([r["method"], r["budget"], bits, *cells]), "|")


if __name__ == "__main__":
    command(__doc__, HERE, runs, files_in("CIFAR", *FILES), table=table)
