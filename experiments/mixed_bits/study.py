"""Bits by layer against one width at the same bytes, on smooth images, ResNet-20 for CIFAR-10.

``CIFAR=<folder> python -m experiments.mixed_bits.study run`` goes through the runs that have no
result yet; ``... table`` prints what they say. ``$CIFAR`` holds the two files that README.md names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from experiments.resumable import command, files_in

HERE = Path(__file__).resolve().parent
FILES = ("resnet20-12fca82f.th", "cifar10_test_first1017.npz")
COMMON = (
    *("model=resnet20_cifar10", "schedule=quick", f"model.checkpoint={FILES[0]}", "data=npz"),
    *(f"data.path={FILES[1]}", "trainer.channels_last=true", "trainer.threads=1"),
    *("trainer.precision=auto", "export=none", "report=false", "callbacks.progress=false"),
    "seed=0",
)
MADE = ("method=recommended", "order=[synthesis]", "evaluate=false", "quantizer=minmax")
UNTRAINED = ("method=mixed_bits", "quantizer=mse", "schedule.calibration_steps=50")
TRAINED = (
    *("method=recommended", "quantizer=lsq", "quantizer.ranges.lr_multiplier=5"),
    *("schedule.learning_rate=cosine", "+stage@stages.search=search_bits"),
    *("stages.search.source=bank", "stages.search.samples=256"),
)
STEPS = {
    "corrected": (UNTRAINED, "calibration,correction"),
    "trained": (TRAINED, "calibration,distillation"),
}
RUNS = (
    *((bits, "corrected", width) for width in ("w3a3", "w3a8", "w4a4", "w2a4") for bits in "um"),
    ("m", "trained", "w3a3"),
)
"""One width (u) or the search's bits (m), the stages behind, and the width that gives the bytes."""


def runs() -> Iterator[tuple[str, list[str]]]:
    """Yield name and words of each run."""
    for kind, steps, width in RUNS:
        words, order = STEPS[steps]
        search = "search," if kind == "m" else ""
        name = f"{'mixed' if kind == 'm' else 'uniform'}_{steps}_{width}_seed0"
        bits = [f"quantizer.weight_bits={width[1]}", f"quantizer.activation_bits={width[3]}"]
        yield name, [*COMMON, *words, f"order=[{search}{order}]", *bits]


if __name__ == "__main__":
    command(
        __doc__,
        HERE,
        runs,
        files_in("CIFAR", *FILES),
        images=lambda name: ("bank_seed0", [*COMMON, *MADE]),
    )
