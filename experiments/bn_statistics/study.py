"""What images and students lose that are matched to means or to variances alone.

``CIFAR=<folder> python -m experiments.bn_statistics.study run`` goes through the runs that have no
result yet, on the digits and on ResNet-20 for CIFAR-10; ``... table`` prints what they say.
``$CIFAR`` holds the two files that README.md names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from experiments.resumable import command, files_in

HERE = Path(__file__).resolve().parent
FILES = ("resnet20-12fca82f.th", "cifar10_test_first1017.npz")
COMMON = (
    *("quantizer.bits=3", "trainer.threads=1", "export=none", "report=false"),
    "callbacks.progress=false",
)
DIGITS = (
    *("method=hast", "model=digits", "data=digits", "quantizer=minmax", "schedule=demo"),
    "seed=0",
)
RESNET20 = (
    *("method=hast_adam", "model=resnet20_cifar10", f"model.checkpoint={FILES[0]}"),
    *("quantizer=lsq", "quantizer.ranges.lr_multiplier=5", "schedule=quick"),
    *("schedule.images=512", "schedule.student_steps=400", "schedule.learning_rate=cosine"),
    *("stages.calibration.source=bank", "stages.calibration.terms.bns.enabled=false"),
    "stages.calibration.terms.cross_entropy.enabled=false",
    *("stages.calibration.steps=20", "stages.calibration.batch_size=64"),
    *("data=npz", f"data.path={FILES[1]}", "trainer.channels_last=true"),
    *("trainer.precision=auto", "seed=0"),
)
"""Two fifths of the images of ``schedule=quick`` and half its steps; the bank alone has images."""
NETWORKS = {"": (DIGITS, ("synthesis", "calibration")), "resnet20_": (RESNET20, ("synthesis",))}
"""Words of a network, and its stages that make images; by what its runs' names begin with."""
SETTINGS: dict[str, str] = {
    "both": "",
    "means": "variance_weight=0",
    "variances": "mean_weight=0",
    "deviations": "spread=deviation",
}


def runs() -> Iterator[tuple[str, list[str]]]:
    """Yield name and words of each run: the same setting in all stages that make images."""
    for network, (words, stages) in NETWORKS.items():
        for name, setting in SETTINGS.items():
            changes = [f"stages.{stage}.terms.bns.{setting}" for stage in stages if setting]
            yield f"{network}{name}_w3a3_seed0", [*words, *COMMON, *changes]


if __name__ == "__main__":
    command(__doc__, HERE, runs, files_in("CIFAR", *FILES))
