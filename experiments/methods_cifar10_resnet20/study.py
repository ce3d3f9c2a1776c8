"""Run every method on ResNet-20 for CIFAR-10 with one budget, and print the table.

``CIFAR=<folder> python -m experiments.methods_cifar10_resnet20.study run`` goes through the runs
that have no result yet, or those whose names begin so (``run adadfq zeroq_w3``); ``... table``
prints what they say. ``$CIFAR`` holds the two files that README.md names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from experiments.own_pictures import OWN, REST, split_pictures
from experiments.resumable import command, files_in

HERE = Path(__file__).resolve().parent
FILES = ("resnet20-12fca82f.th", "cifar10_test_first1017.npz")
COMMON = (
    *("model=resnet20_cifar10", "quantizer=minmax", "schedule=quick"),
    *("model.checkpoint=resnet20-12fca82f.th", "data=npz"),
    *("data.path=cifar10_test_first1017.npz", "trainer.channels_last=true"),
    *("trainer.threads=1", "export=none", "report=false", "callbacks.progress=false"),
)
BANK = "schedule.student_batch=64"
"""HAST's batch for every method that trains on a bank, so that all see equally many images."""
SMALL = "schedule.student_batch=16"
"""AdaDFQ's batch for every method whose generator makes the images of each step."""
REBUILT = "quantizer=lsq"
"""The quantizer of the methods that rebuild the network block by block: steps are learned."""
ROUNDED = (
    *("rounding@quantizer.rounding=adaptive", "stages.reconstruction.trains=rounding"),
    "stages.reconstruction.learns_scales=false",
)
"""Weights stay and learn whether they are rounded up or down."""
HALF = "trainer.precision=auto"
"""The methods that were run last have bfloat16, where the processor multiplies it."""
METHODS: dict[str, tuple[str, ...]] = {
    "synq": ("method=synq", BANK),
    # At the released rate, 1e-4, the loss at W3A3 is NaN at step 6; this is HAST's.
    "intraq": ("method=intraq", BANK, "stages.distillation.optimizer.lr=1e-5"),
    "ait_bank": ("method=ait_bank", BANK),
    "adadfq": ("method=adadfq",),
    # As many views of images as methods with a bank see.
    "adadfq_64": ("method=adadfq", BANK, HALF),
    "adasg": ("method=adasg",),
    "gdfq": ("method=gdfq", SMALL),
    "gdfq_64": ("method=gdfq", BANK, HALF),
    "zeroq": ("method=zeroq", HALF),
    # As many images as methods with a bank see, in four times the steps of other generators.
    **{
        f"{method}_longer": (f"method={method}", SMALL, HALF, "schedule.student_steps=3200")
        for method in ("adadfq", "gdfq", "qimera")
    },
    "qimera": ("method=qimera", SMALL),
    "plf": ("method=plf", BANK, HALF),
    # At HAST's rate, a hundredth of the paper's.
    "plf_slowly": ("method=plf", BANK, HALF, "stages.distillation.optimizer.lr=1e-5"),
    "texq_style": ("method=texq_style", BANK, HALF),
    "noise": ("method=noise", BANK),
    # Measured on the test pictures that it does not have.
    "own_images": (
        *("method=own_images", BANK, HALF, f"sources.images.path={OWN}"),
        f"data.path={REST}",
    ),
    "tdg_style": ("method=tdg_style", SMALL, HALF),
    # A coin chose the hard images when it was run; now their margin does.
    "dynadfq_style": ("method=dynadfq_style", SMALL, HALF, "sources.generator.chosen_by=coin"),
    "dynadfq_margin": ("method=dynadfq_style", SMALL, HALF),
    "ris_style": ("method=ris_style", SMALL, HALF),
    "genie": ("method=genie", REBUILT, HALF),
    "dgh": ("method=dgh", REBUILT, HALF),
    "reconstruct": ("method=reconstruct", REBUILT, HALF),
    # Ranges of least squared error, which nothing trains.
    "reconstruct_mse": ("method=reconstruct", "quantizer=mse", HALF),
    "reconstruct_rounding": ("method=reconstruct", REBUILT, HALF, *ROUNDED),
    "brecq_style": ("method=brecq_style", REBUILT, HALF),
    "qdrop_style": ("method=qdrop_style", REBUILT, HALF),
    # Fivefold iterations, which leave fewer roundings undecided.
    "qdrop_style_longer": ("method=qdrop_style", REBUILT, HALF, "schedule.unit_steps=2000"),
    "hast": ("method=hast", BANK, HALF),
    "hast_near_grid": ("method=hast_near_grid", BANK, HALF),
    "sadag_style": ("method=sadag_style", REBUILT, HALF),
}
GENERATED = (
    *("adadfq", "adadfq_64", "gdfq_64"),
    "adasg",
    *(name for name, words in METHODS.items() if SMALL in words),
    "noise",
    "own_images",
)
"""Methods without a bank, whose images are made when they are needed."""
PLAIN = ("stages.synthesis.terms.hard_cross_entropy.gamma=0",)
ALIGNED = "stages.distillation.terms.alignment.enabled="
PROMOTED = "stages.distillation.transforms.promotion.enabled="
PARTS: dict[str, tuple[str, ...]] = {
    "none": (*PLAIN, ALIGNED + "false", PROMOTED + "false"),
    "hard": (ALIGNED + "false", PROMOTED + "false"),
    "hard_aligned": (ALIGNED + "true", PROMOTED + "false"),
    "hard_promoted": (ALIGNED + "false", PROMOTED + "true"),
    # All three are the row of HAST itself, hast_w3a3.
    "mixed": ("+transform@stages.distillation.transforms.mixing=mix_pairs",),
    "spatial": ("+term@stages.distillation.terms.spatial=spatial_attention",),
    "adaptive": (
        ALIGNED + "false",
        "+term@stages.distillation.terms.adaptive=adaptive_attention",
    ),
    # SynQ's three, each added to KL on the same images: the row of "hard".
    "low_pass": (
        *(ALIGNED + "false", PROMOTED + "false"),
        "+transform@stages.distillation.transforms.low_pass=low_pass",
        "stages.distillation.transforms.low_pass.radius=8",
    ),
    "masked": (
        *(ALIGNED + "false", PROMOTED + "false"),
        "+term@stages.distillation.terms.cross_entropy=masked_cross_entropy",
        "stages.distillation.terms.cross_entropy.weight=0.5",
    ),
    "cam": (
        *(ALIGNED + "false", PROMOTED + "false"),
        "+term@stages.distillation.terms.cam=grad_cam",
        "stages.distillation.terms.cam.weight=50",
    ),
    "adam": ("method=hast_adam", "schedule.learning_rate=cosine"),
    "adam_none": (
        *("method=hast_adam", "schedule.learning_rate=cosine"),
        *(ALIGNED + "false", PROMOTED + "false"),
    ),
}
"""HAST's parts added to one base, KL alone on images whose loss has no hardness; others to HAST."""
IMAGES: dict[str, tuple[str, ...]] = {
    "kl": ("method=hast", *PLAIN),
    "hast": ("method=hast",),
    "smooth": ("method=reconstruct",),
    "genie": ("method=genie",),
}
SHARED = {
    "kl": ("part_none",),
    "hast": ("hast", "part"),
    "smooth": ("reconstruct", "brecq_style", "qdrop_style"),
    "genie": ("genie",),
}
"""Images by what makes them, and what the names of the runs begin with that they are for."""
BITS = (3, 4)
SEEDED = ("reconstruct", "dgh", "hast", "hast_near_grid", "ait_bank", "intraq", "adadfq")
"""The five best at W3A3 by one seed, which have three, and two of those behind them."""


def runs() -> Iterator[tuple[str, list[str]]]:
    """Yield name and words of every run."""
    for method, words in METHODS.items():
        for bits in BITS:
            for seed in (0, 1, 2) if method in SEEDED and bits == 3 else (0,):
                chosen = [f"seed={seed}", *words, f"quantizer.bits={bits}"]
                yield f"{method}_w{bits}a{bits}_seed{seed}", [*COMMON, *chosen]
    for part, words in PARTS.items():
        base = [*COMMON, "seed=0", "method=hast", BANK, HALF, "quantizer.bits=3"]
        yield f"part_{part}_w3a3_seed0", [*base, *words]


def images(name: str) -> tuple[str, list[str]] | None:
    """Return the run that makes the images of another, where several runs share them."""
    kind = next((kind for kind, names in SHARED.items() if name.startswith(names)), None)
    if kind is None:
        return None
    seed = name.rpartition("_seed")[2]
    words = [*IMAGES[kind], HALF, "quantizer.bits=3", "order=[synthesis]", "evaluate=false"]
    return f"images_of_{kind}_seed{seed}", [*COMMON, f"seed={seed}", *words]


def bank_of(name: str) -> list[str]:
    """Return the word that loads a method's images where they are made: bits do not matter."""
    method, seed = name.split("_w", maxsplit=1)[0], name.rpartition("_seed")[2]
    # SADAG goes on with the latents of its images, which no file holds.
    if method in (*GENERATED, "sadag_style") or images(name):
        return []
    method = method.removesuffix("_slowly")
    made = sorted(Path().glob(f"{method}_w*_seed{seed}/samples.safetensors"))
    return [f"sources.bank.load={made[0]}"] if made else []


def files() -> list[Path]:
    """Return the two files, and the second parted in own pictures and others."""
    given = files_in("CIFAR", *FILES)()
    return [*given, *split_pictures(given[1])]


def table() -> None:
    """Print one row a run."""
    print("| method | W/A | calibrated | top-1, last step | agreement |")
    for name, _ in runs():
        path = HERE / "results" / name / "result.json"
        if path.exists():
            r = json.loads(path.read_text())
            figures = ("calibrated_top1", "quantized_top1", "teacher_agreement")
            cells = [f"{r[figure]:.2f}" for figure in figures]
            bits = f"{r['weight_bits']}/{r['activation_bits']}"
            print("|", " | ".join([str(r["method"]), bits, *cells]), "|")


if __name__ == "__main__":
    command(__doc__, HERE, runs, files, images=images, more=bank_of, table=table)
