"""Which images make which stage best, at equal cost: ResNet-20 on CIFAR-10 at W3A3.

``CIFAR=<folder> python -m experiments.images.study run`` goes through the runs that have no result
yet, or those whose names begin so (``run smooth``); ``... table`` prints what each stage left.
``$CIFAR`` holds the two files that README.md names.
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
    *("model=resnet20_cifar10", "quantizer=lsq", "quantizer.bits=3", "schedule=quick"),
    *("schedule.images=256", "schedule.image_steps=200", "schedule.calibration_steps=50"),
    *("model.checkpoint=resnet20-12fca82f.th", "data=npz"),
    *("data.path=cifar10_test_first1017.npz", "trainer.channels_last=true", "trainer.threads=1"),
    *("export=none", "report=false", "callbacks.progress=false"),
)
CLASS = "stages.synthesis.terms.hard_cross_entropy"
BNS = "stages.synthesis.terms.bns"
BANK = "source@sources.bank=image_bank_of_schedule"
FEW = ("stages.reconstruction.samples=192", "stages.correction.samples=192")
"""All that are not held out, of every source."""
NOT_MADE = ("noise", "drawn", "drawn_many", "own")
"""Kinds of images without a synthesis."""
ORDER = ("synthesis", "calibration", "correction")
IMAGES: dict[str, tuple[str, ...]] = {
    "noise": ("method=reconstruct", "source@sources.bank=noise"),
    # Pictures of leaves as they are drawn.
    "drawn": ("method=reconstruct", "source@sources.bank=noise", "sources.bank.start=leaves"),
    # As many of them as method=reconstruct has of others: they cost nothing.
    "drawn_many": ("method=reconstruct", "source@sources.bank=noise", "sources.bank.start=leaves"),
    "statistics": ("method=reconstruct", BANK, f"{BNS}.relative=false", f"{CLASS}.enabled=false"),
    "hast": ("method=reconstruct", BANK, f"{BNS}.relative=false", f"{CLASS}.weight=10"),
    "smooth": ("method=reconstruct",),
    "leaves": ("method=reconstruct", "sources.bank.start=leaves"),
    "genie": (
        *("method=genie", "rounding@quantizer.rounding=nearest"),
        *("+stage@stages.correction=correct", "stages.correction.source=bank"),
        *("stages.reconstruction.trains=weights", "stages.reconstruction.step_lr=1e-3"),
        *("stages.reconstruction.batch_size=64", "stages.calibration.batch_size=64"),
    ),
    # Measured on the other test pictures.
    "own": (
        *("method=reconstruct", "source@sources.bank=images", f"sources.bank.path={OWN}"),
        f"data.path={REST}",
    ),
    "dgh": ("method=dgh", "stages.reconstruction.batch_size=64"),
    "generator": (
        *("method=reconstruct", "source@sources.bank=generator"),
        # As many images as 256 of 200 steps.
        *("sources.bank.batch_size=128", "stages.synthesis.steps=400"),
        *(f"{BNS}.relative=false", f"{BNS}.weight=0.1", f"{CLASS}.weight=1"),
    ),
}
"""Words of each kind of images; what the stages behind them do is the same."""
CHANGED = (
    "+transform@stages.{0}.transforms.crop_and_flip=crop_and_flip",
    "stages.{0}.transforms.crop_and_flip.probability=1",
    "stages.{0}.transforms.crop_and_flip.min_scale=0.5",
)
TRAINING = (
    *("+stage@stages.distillation=distill", "stages.distillation.source=bank"),
    *("+term@stages.distillation.terms.kd=kl", "stages.distillation.terms.kd.temperature=20"),
    *("stages.distillation.terms.kd.reduction=batchmean", "stages.distillation.terms.kd.weight=1"),
    "stages.distillation.optimizer={name: adam, lr: 1e-4}",
    *("stages.distillation.learning_rate={policy: cosine}", "stages.distillation.batch_size=64"),
    *("stages.distillation.steps=200", *(word.format("distillation") for word in CHANGED)),
)
"""The network as a whole: KL alone, on views of the images."""
UNITS = ("schedule.unit_steps=100", "stages.reconstruction.views=4", *FEW)


MANY = ("stages.reconstruction.samples=1024", "stages.correction.samples=512")


def runs() -> Iterator[tuple[str, list[str]]]:
    """Yield name and words of every run."""
    for seed in (0, 1, 2):
        for kind, words in IMAGES.items():
            first = ORDER[1:] if kind in NOT_MADE else ORDER
            many = MANY if kind == "drawn_many" else ()
            views = () if words[0] == "method=reconstruct" else CHANGED
            changed = [word.format("reconstruction") for word in views]
            common = [*words[:1], *COMMON, *words[1:], f"seed={seed}"]
            units = [*UNITS, *changed, f"order=[{','.join((*first, 'reconstruction'))}]"]
            yield f"{kind}_units_seed{seed}", [*common, *units, *many]
            corrected = many[1:] or FEW[1:]
            trained = [*TRAINING, *corrected, f"order=[{','.join((*first, 'distillation'))}]"]
            yield f"{kind}_trained_seed{seed}", [*common, *trained]


def bank_of(name: str) -> list[str]:
    """Return the word that loads the images that the run by units made."""
    kind, stage, seed = name.rsplit("_", 2)
    made = Path(f"{kind}_units_{seed}/samples.safetensors")
    return [f"sources.bank.load={made}"] if stage == "trained" and made.exists() else []


def files() -> list[Path]:
    """Return the two files, and the second parted in own pictures and others."""
    given = files_in("CIFAR", *FILES)()
    return [*given, *split_pictures(given[1])]


def table() -> None:
    """Print a row for each kind of images and each way on, with what every stage left."""
    print("| images | seed | calibrated | corrected | rebuilt or trained | agreement | error |")
    for name, _ in runs():
        path = HERE / "results" / name / "result.json"
        if path.exists():
            kind, last, seed = name.rsplit("_", 2)
            stages = json.loads(path.read_text())["judged"].values()
            tops = [f"{stage['evaluation']['top1']:.2f}" for stage in stages]
            *_, end = stages
            of_end = (f"{end['evaluation']['agreement']:.2f}", f"{end['reference']['error']:.3f}")
            print(
                f"| {kind}, {last} |", " | ".join([seed.removeprefix("seed"), *tops, *of_end]), "|"
            )


if __name__ == "__main__":
    command(__doc__, HERE, runs, files, more=bank_of, table=table)
