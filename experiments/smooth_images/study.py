"""What images from smooth noise and relative BatchNorm statistics give, ResNet-20 on CIFAR-10.

``CIFAR=<folder> python -m experiments.smooth_images.study run`` goes through the runs that have no
result yet, or those whose names begin so (``run both_w3a3``); ``... table`` prints what they say.
``$CIFAR`` holds the two files that README.md names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from experiments.reconstruction.coarser import coarser
from experiments.resumable import command, files_in

HERE = Path(__file__).resolve().parent
FILES = ("resnet20-12fca82f.th", "cifar10_test_first1017.npz")
COMMON = (
    *("model=resnet20_cifar10", "schedule=quick", "quantizer=lsq"),
    *("schedule.learning_rate=cosine", "model.checkpoint=resnet20-12fca82f.th", "data=npz"),
    *("data.path=cifar10_test_first1017.npz", "trainer.channels_last=true", "trainer.threads=1"),
    *("trainer.precision=auto", "export=none", "report=false", "callbacks.progress=false"),
)
PLAIN = (
    "stages.synthesis.terms.bns.relative=false",
    "stages.synthesis.terms.hard_cross_entropy.weight=10",
)
WHITE = ("sources.bank.start=white",)
MORE_CLASS = ("stages.synthesis.terms.hard_cross_entropy.weight=0.1",)
"""As method=recommended had it when most of these runs were made."""
IMAGES: dict[str, tuple[str, ...]] = {
    **{"both": MORE_CLASS, "smooth": PLAIN, "relative": (*WHITE, *MORE_CLASS)},
    # As the method has them now.
    "less_class": (),
}
"""Images by what they have of the two: a start from smooth noise, relative statistics."""
REBUILT = (
    *MORE_CLASS,
    *("+stage@stages.correction=correct", "stages.correction.source=bank"),
    *("+stage@stages.reconstruction=reconstruct", "stages.reconstruction.source=bank"),
    *("stages.reconstruction.samples=1024", "stages.reconstruction.views=4"),
    "+transform@stages.reconstruction.transforms.crop_and_flip=crop_and_flip",
    *("stages.reconstruction.iterations=400", "stages.reconstruction.batch_size=64"),
    "order=[synthesis,calibration,correction,reconstruction,distillation]",
)
WITHOUT = {
    "alignment": "stages.distillation.terms.alignment.enabled=false",
    "promotion": "stages.distillation.transforms.promotion.enabled=false",
}
TRAINED_FIRST = (*REBUILT, "order=[synthesis,calibration,distillation,reconstruction]")
BLOCKS = (*REBUILT, "order=[synthesis,calibration,correction,reconstruction]")
GENTLY = (*REBUILT, "stages.distillation.optimizer.lr=1e-4")
"""Training behind the units at a tenth of its rate."""
TRAINED: dict[str, tuple[str, ...]] = {
    "rebuilt": REBUILT,
    "rebuilt_gently": GENTLY,
    "blocks": BLOCKS,
    "blocks_longer": (*BLOCKS, "stages.reconstruction.iterations=1000"),
    "blocks_longest": (*BLOCKS, "stages.reconstruction.iterations=2500"),
    # A correction between calibration and training.
    "corrected": (
        *("+stage@stages.correction=correct", "stages.correction.source=bank"),
        "order=[synthesis,calibration,correction,distillation]",
    ),
    # HAST's parts behind a reconstruction: without both, and without one.
    "rebuilt_gently_kd": (*GENTLY, *WITHOUT.values()),
    "rebuilt_gently_promotion": (*GENTLY, WITHOUT["alignment"]),
    "rebuilt_gently_alignment": (*GENTLY, WITHOUT["promotion"]),
    # HAST before a reconstruction, with its parts and by KL alone.
    "trained_rebuilt": TRAINED_FIRST,
    "trained_rebuilt_kd": (*TRAINED_FIRST, *WITHOUT.values()),
}
"""What is done with images that have both, beside the 800 steps of training."""
HAST_AND_UNITS = ("rebuilt_gently", "trained_rebuilt")
UNITS: dict[str, tuple[str, ...]] = {
    "units_longer": ("schedule.unit_steps=1000",),
    "units_longest": ("schedule.unit_steps=2500",),
    # As the papers on reconstruction have it.
    "units_ends_at_8": ("schedule.unit_steps=1000", "quantizer.first_and_last_8bit=true"),
    # Behind the units the three stages of the network, and then the network as one unit.
    "units_coarser": (
        "schedule.unit_steps=1000",
        *coarser("thirds", ["layer1.2.relu2", "layer2.2.relu2"], 1000, 5e-4),
        *coarser("whole", ["linear"], 2000, 2e-4),
        *(
            f"+transform@stages.{stage}.transforms.crop_and_flip=crop_and_flip"
            for stage in ("thirds", "whole")
        ),
        "order=[synthesis,calibration,correction,reconstruction,thirds,whole]",
    ),
    # The network as one unit behind 400 iterations of its blocks.
    "units_whole": (
        *coarser("whole", ["linear"], 2000, 2e-4),
        "+transform@stages.whole.transforms.crop_and_flip=crop_and_flip",
        "order=[synthesis,calibration,correction,reconstruction,whole]",
    ),
}
"""method=reconstruct: the class weighs a hundredth, and ranges are calibrated on the images."""
WIDTHS = {"w3a3": ("quantizer.bits=3", "quantizer.ranges.lr_multiplier=5")}
WIDTHS["w4a4"] = ("quantizer.bits=4",)
WIDTHS["w2a4"] = (
    *("quantizer.weight_bits=2", "quantizer.activation_bits=4"),
    "quantizer.ranges.lr_multiplier=5",
)
WIDTHS["w2a2"] = ("quantizer.bits=2", "quantizer.ranges.lr_multiplier=5")
RUNS = (
    *(("both", "w3a3", seed) for seed in (0, 1, 2)),
    *(("both", width, 0) for width in ("w4a4", "w2a4", "w2a2")),
    *((images, "w3a3", 0) for images in ("relative", "smooth")),
    *(("both", "w4a4", seed) for seed in (1, 2)),
    *(("less_class", "w3a3", seed) for seed in (0, 1, 2)),
    *(("blocks", "w2a4", 0), ("blocks_longer", "w2a2", 0)),
    *(("blocks_longer", "w2a4", 0), ("blocks_longest", "w2a4", 0)),
    *(("rebuilt_gently", "w2a2", 0), ("rebuilt", "w2a2", 0)),
    *((kind, "w3a3", 0) for kind in TRAINED if kind.startswith(HAST_AND_UNITS)),
    *((units, width, 0) for width in ("w2a2", "w2a4") for units in UNITS),
    *(("trained_rebuilt", "w2a4", 0), ("corrected", "w3a3", 0)),
)
"""Images or what is done with them, width and seed, those that say most first."""


CLASS = "stages.synthesis.terms.hard_cross_entropy"
UNTRAINED: dict[str, tuple[str, ...]] = {
    "former": ("source@sources.bank=image_bank_of_schedule", *PLAIN),
    "class_0.1": MORE_CLASS,
    "class_0.01": (f"{CLASS}.weight=0.01",),
    "no_class": (f"{CLASS}.enabled=false",),
}
"""How much the class of a few images counts, for a student that is calibrated and corrected."""
FEW = (
    *("+stage@stages.correction=correct", "stages.correction.source=bank", "quantizer=mse"),
    *("order=[synthesis,calibration,correction]", "schedule.images=256"),
    *("stages.calibration.source=bank", "stages.calibration.terms.bns.enabled=false"),
    "stages.calibration.terms.cross_entropy.enabled=false",
    *("stages.calibration.steps=50", "stages.calibration.batch_size=64"),
)


def words_of(kind: str) -> list[str]:
    """Return the words that all runs of a kind have."""
    method = "reconstruct" if kind in UNITS else "recommended"
    return [f"method={method}", *COMMON, *(IMAGES | TRAINED | UNITS)[kind]]


def runs() -> Iterator[tuple[str, list[str]]]:
    """Yield name and words of every run."""
    for kind, width, seed in RUNS:
        words = [*words_of(kind), *WIDTHS[width], f"seed={seed}"]
        yield f"{kind}_{width}_seed{seed}", words
    for seed in (0, 1):
        for kind, more in UNTRAINED.items():
            words = ["method=recommended", *COMMON, *FEW, "quantizer.bits=3", *more, f"seed={seed}"]
            yield f"untrained_{kind}_seed{seed}", words


def images(name: str) -> tuple[str, list[str]] | None:
    """Return the run that makes the images of another: bits and training do not matter."""
    kind, _, seed = name.rsplit("_", 2)
    if kind.startswith("untrained"):
        return None
    kind = "units_longer" if kind in (*UNITS, "corrected") else kind
    kind = kind if kind in (*IMAGES, *UNITS) else "both"
    words = [*words_of(kind), *WIDTHS["w3a3"], "order=[synthesis]", "evaluate=false"]
    return f"bank_{kind}_{seed}", [*words, f"seed={seed[-1]}"]


if __name__ == "__main__":
    command(__doc__, HERE, runs, files_in("CIFAR", *FILES), images=images)
