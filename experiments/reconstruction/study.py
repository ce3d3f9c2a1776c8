"""What correction, reconstruction and training give one after the other, ResNet-20 on CIFAR-10.

``CIFAR=<folder> python -m experiments.reconstruction.study run`` goes through the runs that have
no result yet; ``... table`` prints what they say. ``$CIFAR`` holds the two files that README.md
names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from experiments import former
from experiments.resumable import command, files_in

HERE = Path(__file__).resolve().parent
FILES = ("resnet20-12fca82f.th", "cifar10_test_first1017.npz")
COMMON = (
    *("model=resnet20_cifar10", "schedule=quick", "model.checkpoint=resnet20-12fca82f.th"),
    *("data=npz", "data.path=cifar10_test_first1017.npz", "trainer.channels_last=true"),
    *("trainer.threads=1", "export=none", "report=false", "callbacks.progress=false"),
)
MADE = ("order=[synthesis]", "evaluate=false", "quantizer=minmax")
BANKS: dict[str, tuple[str, ...]] = {
    "bank": ("method=hast", *MADE),
    "bank_of_statistics": (
        *("method=hast", *MADE),
        "stages.synthesis.terms.hard_cross_entropy.enabled=false",
    ),
    "bank_of_genie": ("method=genie", *MADE),
    "bank_of_dgh": ("method=dgh", *MADE),
}
"""Images of the same number and iterations, by what they are made with."""
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
REBUILT = (
    *("method=reconstruct", "quantizer=lsq", "stages.calibration.steps=20", *former.IMAGES),
    "order=[calibration,correction,reconstruction]",
)
SETS = "sources.bank.batch_size=256"
"""As in schedule=quick, which these sources do not read by themselves."""
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
    # What the student is rebuilt on, all else as in results/rec_lsq_w3a3_seed0 on HAST's images.
    "images_of_noise": (*REBUILT, "source@sources.bank=noise"),
    "images_of_statistics": REBUILT,
    "images_of_genie": (*REBUILT, "source@sources.bank=latent_bank", SETS),
    "images_of_dgh": (*REBUILT, "source@sources.bank=image_set", SETS),
    "rounding": (
        *REBUILT,
        *("rounding@quantizer.rounding=adaptive", "stages.reconstruction.trains=rounding"),
        "stages.reconstruction.regularization=0.01",
    ),
    "longer": (*REBUILT, "stages.reconstruction.iterations=1200"),
    "reconstruct_mixed": (
        *("method=reconstruct", "quantizer=lsq", "stages.calibration.steps=20", *former.IMAGES),
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
    *[(f"images_of_{kind}", 3, 3, 0) for kind in ("noise", "statistics", "genie", "dgh")],
    *[("rounding", 3, 3, 0), ("longer", 3, 3, 0)],
    ("recommended_mixed_correct", 3, 3, 0),
    *[("correct_distill", 3, 3, 0), ("distill", 3, 3, 0), ("correct_distill_clean", 3, 3, 0)],
]
"""Variant, bits of weights and of activations, and seed."""
WITHOUT_BANK = ("adadfq_adam", "images_of_noise")
"""Variants that make their samples themselves."""


def runs() -> Iterator[tuple[str, list[str]]]:
    """Yield name and words of every run."""
    for variant, weights, activations, seed in RUNS:
        bits = [f"quantizer.weight_bits={weights}", f"quantizer.activation_bits={activations}"]
        words = [*COMMON, *VARIANTS[variant], *bits, f"seed={seed}"]
        yield f"{variant}_w{weights}a{activations}_seed{seed}", words


def images(name: str) -> tuple[str, list[str]] | None:
    """Return the run that makes the images of another, where that does not make its own."""
    variant, _, seed = name.rsplit("_", 2)
    if variant in WITHOUT_BANK:
        return None
    bank = variant.replace("images", "bank") if "images" in variant else "bank"
    return f"{bank}_{seed}", [*COMMON, *BANKS[bank], f"seed={seed[-1]}"]


if __name__ == "__main__":
    command(__doc__, HERE, runs, files_in("CIFAR", *FILES), images=images)
