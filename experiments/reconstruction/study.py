"""What correction, reconstruction and training give one after the other, ResNet-20 on CIFAR-10.

``CIFAR=<folder> python -m experiments.reconstruction.study run`` goes through the runs that have
no result yet; ``... table`` prints what they say. ``$CIFAR`` holds the two files that README.md
names.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from experiments.resumable import carry_out, print_stages

HERE = Path(__file__).resolve().parent
FILES = ("resnet20-12fca82f.th", "cifar10_test_first1017.npz")
COMMON = (
    *("model=resnet20_cifar10", "schedule=quick", "model.checkpoint=resnet20-12fca82f.th"),
    *("data=npz", "data.path=cifar10_test_first1017.npz", "trainer.channels_last=true"),
    *("trainer.threads=1", "export=none", "report=false", "callbacks.progress=false"),
)
BANK = ("method=hast", "order=[synthesis]", "evaluate=false", "quantizer=minmax")
LEARNED = ("quantizer=lsq", "quantizer.ranges.lr_multiplier=5")
ON_BANK = (
    *("stages.calibration.source=bank", "stages.calibration.terms.bns.enabled=false"),
    "stages.calibration.terms.cross_entropy.enabled=false",
    *("stages.calibration.steps=20", "stages.calibration.batch_size=64"),
)
CORRECTED = ("+stage@stages.correction=correct", "stages.correction.source=bank")
TRAINED = ("method=hast_adam", "schedule.learning_rate=cosine", *LEARNED, *ON_BANK, *CORRECTED)
ORDER = "order=[calibration,correction,distillation]"
MIXED = "+transform@stages.{}.transforms.mixing=mix_pairs"
VARIANTS: dict[str, tuple[str, ...]] = {
    "correct_distill": (*TRAINED, ORDER),
    "distill": (*TRAINED, "order=[calibration,distillation]"),
    "correct_distill_clean": (
        *TRAINED,
        ORDER,
        "stages.distillation.transforms.promotion.enabled=false",
    ),
    "recommended_mixed": (
        *("method=hast_adam", "schedule.learning_rate=cosine", *LEARNED),
        *("order=[calibration,distillation]", MIXED.format("distillation")),
    ),
    "recommended_mixed_correct": (
        *("method=hast_adam", "schedule.learning_rate=cosine", *LEARNED, *CORRECTED),
        *("order=[calibration,distillation,correction]", MIXED.format("distillation")),
    ),
    "adadfq_adam": (
        *("method=adadfq", "schedule.learning_rate=cosine", *LEARNED),
        *("stages.alternation.distillation.optimizer.name=adam",),
        *("stages.alternation.distillation.optimizer.lr=1e-3",),
        *("stages.alternation.distillation.optimizer.weight_decay=0",),
    ),
    "reconstruct_mixed": (
        *("method=reconstruct", "quantizer=lsq", "stages.calibration.steps=20"),
        *("order=[calibration,correction,reconstruction]", MIXED.format("reconstruction")),
    ),
}
RUNS = [
    *[("recommended_mixed", 3, 3, 0), ("reconstruct_mixed", 3, 3, 0), ("adadfq_adam", 3, 3, 0)],
    *[
        ("reconstruct_mixed", 4, 4, 0),
        ("reconstruct_mixed", 2, 4, 0),
        ("reconstruct_mixed", 2, 2, 0),
    ],
    *[("reconstruct_mixed", 3, 3, 1), ("reconstruct_mixed", 3, 3, 2)],
    ("recommended_mixed_correct", 3, 3, 0),
    *[("correct_distill", 3, 3, 0), ("distill", 3, 3, 0), ("correct_distill_clean", 3, 3, 0)],
]
"""Variant, bits of weights and of activations, and seed."""


def runs(wanted: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield name and words of the runs whose name begins as one that is wanted; none: of all."""
    for variant, weights, activations, seed in RUNS:
        name = f"{variant}_w{weights}a{activations}_seed{seed}"
        if not wanted or name.startswith(tuple(wanted)):
            made = "method=adadfq" in VARIANTS[variant]
            if not made and not Path(bank_of(seed)).exists():
                yield f"bank_seed{seed}", [*COMMON, *BANK, f"seed={seed}"]
            load = [] if made else [f"sources.bank.load={bank_of(seed)}"]
            bits = [f"quantizer.weight_bits={weights}", f"quantizer.activation_bits={activations}"]
            yield name, [*COMMON, *VARIANTS[variant], *bits, f"seed={seed}", *load]


def bank_of(seed: int) -> str:
    """Return the file of a seed's images, which all variants share."""
    return f"bank_seed{seed}/samples.safetensors"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("wanted", nargs="*")
    arguments = parser.parse_args()
    if arguments.what == "table":
        sys.exit(print_stages(HERE))
    carry_out(runs(arguments.wanted), HERE, [Path(os.environ["CIFAR"]) / f for f in FILES])
