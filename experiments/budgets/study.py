"""What a minute, ten minutes and an hour give, ResNet-20 for CIFAR-10 and MobileNetV1 x0.25.

``CIFAR=<folder> IMAGENET=<folder> python -m experiments.budgets.study run`` goes through the runs
that have no result yet; ``... table`` prints what they say. README.md names the files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from experiments.resumable import command

HERE = Path(__file__).resolve().parent
COMMON = (
    *("trainer.channels_last=true", "trainer.threads=1", "trainer.precision=auto", "export=none"),
    *("report=false", "callbacks.progress=false", "quantizer=lsq", "seed=0"),
)
NETWORKS: dict[str, tuple[str, ...]] = {
    "resnet20": (
        *("model=resnet20_cifar10", "model.checkpoint=resnet20-12fca82f.th", "data=npz"),
        "data.path=cifar10_test_first1017.npz",
    ),
    "mobilenetv1": (
        *("model=mobilenetv1_x025", "model.checkpoint=mobilenetv1_x0.25.pth.tar", "data=imagenet"),
        *("data.path=val", "schedule.images=64", "schedule.image_batch=32"),
        *("schedule.image_steps=20", "safeguard.images=32", "stages.correction.samples=64"),
        "stages.calibration.batch_size=32",
    ),
}
LEARNED = ("quantizer.ranges.lr_multiplier=5",)
RUNS: tuple[tuple[str, str, str, int, tuple[str, ...]], ...] = (
    ("resnet20", "without_training", "one_minute", 4, ()),
    ("resnet20", "without_training", "one_minute", 8, ()),
    ("resnet20", "reconstruct", "ten_minutes", 3, ()),
    ("resnet20", "recommended", "ten_minutes", 3, LEARNED),
    ("mobilenetv1", "without_training", "one_minute", 8, ()),
    ("resnet20", "recommended", "one_hour", 3, LEARNED),
)
"""Network, method, budget, bits of weights and activations, words of the method."""


def runs() -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the words of every run."""
    for network, method, budget, bits, more in RUNS:
        words = [f"method={method}", f"schedule={budget}", f"quantizer.bits={bits}"]
        name = f"{network}_{method}_{budget}_w{bits}a{bits}_seed0"
        yield name, [*words, *COMMON, *NETWORKS[network], *more]


def files() -> list[Path]:
    """Return weights and data of both networks."""
    cifar, imagenet = Path(os.environ["CIFAR"]), Path(os.environ["IMAGENET"])
    small = [cifar / "resnet20-12fca82f.th", cifar / "cifar10_test_first1017.npz"]
    return [*small, imagenet / "mobilenetv1_x0.25.pth.tar", imagenet / "val"]


def table() -> None:
    """Print one row a run."""
    print("| network | method | budget | W/A | minutes | GB | calibrated | last step | agreement |")
    for name, _ in runs():
        path = HERE / "results" / name / "result.json"
        if path.exists():
            r = json.loads(path.read_text())
            minutes = sum(r["seconds_by_stage"].values()) / 60
            cells = [f"{minutes:.1f}", f"{r['peak_memory_bytes'] / 1e9:.1f}"]
            figures = ("calibrated_top1", "quantized_top1", "teacher_agreement")
            cells += [f"{r[figure]:.2f}" for figure in figures]
            bits = f"{r['weight_bits']}/{r['activation_bits']}"
            print("|", " | ".join([r["model"], r["method"], r["budget"], bits, *cells]), "|")


if __name__ == "__main__":
    command(__doc__, HERE, runs, files, table=table)
