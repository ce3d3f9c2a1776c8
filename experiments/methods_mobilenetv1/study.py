"""Run the five methods that led on ResNet-20 on MobileNetV1 x0.25 at W5A5, with one small budget.

``IMAGENET=<folder> python -m experiments.methods_mobilenetv1.study run`` goes through the runs that
have no result yet, or those whose names begin so (``run dgh``); ``... table`` prints what they say.
``$IMAGENET`` holds ``mobilenetv1_x0.25.pth.tar`` and the folder ``val``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from experiments.resumable import command, files_in

HERE = Path(__file__).resolve().parent
FILES = ("mobilenetv1_x0.25.pth.tar", "val")
COMMON = (
    *("model=mobilenetv1_x025", "model.checkpoint=mobilenetv1_x0.25.pth.tar"),
    *("quantizer.bits=5", "data=imagenet", "data.path=val", "schedule=evening_imagenet"),
    *("schedule.images=256", "schedule.image_steps=60", "schedule.calibration_steps=16"),
    *("schedule.student_steps=200", "schedule.student_batch=32", "schedule.unit_steps=100"),
    *("schedule.unit_batch=32", "trainer.channels_last=true", "trainer.threads=1"),
    *("safeguard.images=64", "export=none", "report=false", "callbacks.progress=false"),
    "seed=0",
)
REBUILT = ("quantizer=lsq", "stages.calibration.batch_size=32", "stages.correction.samples=64")
"""The quantizer of the methods that rebuild block by block, and what fits the memory."""
WHOLE = ("stages.reconstruction.mix=1", "stages.reconstruction.drop=0")
"""Units take in what the student puts out, and nothing in them passes unquantized."""
METHODS: dict[str, tuple[str, ...]] = {
    "recommended": ("method=recommended_imagenet", *REBUILT),
    # As the method was at first.
    "reconstruct": (
        *("method=recommended_imagenet", *REBUILT, "sources.bank.start=smooth", *WHOLE),
    ),
    "dgh": ("method=dgh", *REBUILT, *WHOLE, "stages.reconstruction.samples=256"),
    "hast": ("method=hast_imagenet", "quantizer=minmax"),
    # HAST's rate on CIFAR-10, ten times that for ImageNet.
    "hast_faster": (
        *("method=hast_imagenet", "quantizer=minmax"),
        "stages.distillation.optimizer.lr=1e-5",
    ),
    "hast_near_grid": (
        *("method=hast_near_grid", "quantizer=minmax"),
        "sources.calibration.conditioning=batch_norm",
    ),
    "ait_bank": (
        *("method=ait_bank", "quantizer=minmax"),
        "sources.calibration.conditioning=batch_norm",
    ),
}
SHARED = ("hast", "ait_bank")
"""What the names of the methods begin with that have the images of HAST's recipe for ImageNet."""


def runs() -> Iterator[tuple[str, list[str]]]:
    """Yield name and words of every run."""
    for method, words in METHODS.items():
        yield f"{method}_w5a5_seed0", [*words, *COMMON]


def images(name: str) -> tuple[str, list[str]] | None:
    """Return the run that makes the images of another, where several runs share them."""
    if not name.startswith(SHARED):
        return None
    return "images_of_hast", [*METHODS["hast"], *COMMON, "order=[synthesis]", "evaluate=false"]


if __name__ == "__main__":
    command(__doc__, HERE, runs, files_in("IMAGENET", *FILES), images=images)
