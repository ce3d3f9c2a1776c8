"""Quantize a small vision transformer on several kinds of pictures, and print the table.

``VIT=<folder> CIFAR10=<folder> python -m experiments.vision_transformer.study
run`` goes through the runs that have no result yet; ``... table`` prints what they say. README.md
names the files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from experiments.choice import handed_back_now
from experiments.own_pictures import OWN, REST, split_pictures
from experiments.resumable import command

HERE = Path(__file__).resolve().parent
WEIGHTS, DATA = "vit_cifar10.pth", "cifar10_test_first1017.npz"
COMMON = (
    *("model=own", "model.factory=experiments.vision_transformer.vit:ViT", "model.name=vit"),
    *(f"model.checkpoint={WEIGHTS}", "model.input_size=32", "model.mean=[.4914,.4822,.4465]"),
    *("model.std=[.2023,.1994,.2010]", "data=npz", f"data.path={REST}"),
    *(
        "schedule.images=32",
        "schedule.image_batch=32",
        "schedule.image_steps=40",
        "schedule.unit_steps=60",
        "schedule.calibration_steps=4",
    ),
    *("data.batch_size=64", "safeguard.images=32", "safeguard.iterations=10", "trainer=cpu"),
    *("trainer.threads=1", "callbacks.progress=false", "report=false", "export=none"),
)
STAGES = (
    *("method=sardfq_style", "quantizer=transformer", "stages.correction.samples=64"),
    "stages.reconstruction.lr=1e-3",
)
CNN = "resnet20-12fca82f.th"
ONE_BIT_CNN = (
    *("model=resnet20_cifar10", f"model.checkpoint={CNN}", "data=npz", f"data.path={REST}"),
    *("method=noise", "order=[calibration,correction]", "quantizer=minmax"),
    *("quantizer.weight_bits=1", "quantizer.activation_bits=8", "schedule.calibration_steps=4"),
    *("stages.correction.samples=64", "safeguard.images=32", "safeguard.iterations=10"),
    *("data.batch_size=64", "trainer=cpu", "trainer.threads=1", "callbacks.progress=false"),
    *("report=false", "export=none", "seed=0"),
)
"""The same weights of one bit on a CNN, Idelbayev's ResNet-20."""
NO_PRIOR = "stages.synthesis.terms.prior.enabled=false"
GOAL = ("total_variation.lowest=2500", "total_variation.highest=3000")
IMAGES: dict[str, tuple[str, ...]] = {
    "noise": ("source@sources.bank=noise",),
    "entropy": (
        *(NO_PRIOR, "+term@stages.synthesis.terms.entropy=patch_entropy"),
        *(f"stages.synthesis.terms.{word}" for word in GOAL),
    ),
    "heads": (NO_PRIOR, "+term@stages.synthesis.terms.heads=head_ssim"),
    "prior": (),
    "own": ("source@sources.bank=images", f"sources.bank.path={OWN}"),
}
"""What the student is quantized on: noise, PSAQ-ViT's term, MimiQ's, SARDFQ's, real pictures."""
MADE = ("entropy", "heads", "prior")
CORRECT, REBUILD = "calibration,correction", "calibration,correction,reconstruction"
WIDTHS = {"w8a8": (8, 8), "w4a8": (4, 8), "w4a4": (4, 4), "w3a3": (3, 3), "w1a8": (1, 8)}
RUNS = (
    *((width, "noise", "correct", 0) for width in ("w4a4", "w8a8", "w4a8")),
    ("w4a4", "own", "correct", 0),
    ("w4a4", "prior", "correct", 0),
    *(("w3a3", images, "correct", 0) for images in ("noise", "prior", "own")),
    ("w1a8", "noise", "correct", 0),
    *(("w4a4", "noise", "correct", seed) for seed in (1, 2)),
    *((width, "own", "correct", 0) for width in ("w8a8", "w4a8")),
    *(("w3a3", images, "rebuild", 0) for images in ("own", "prior")),
    *(("w3a3", images, "correct", 0) for images in ("entropy", "heads")),
    ("w4a4", "own", "rebuild", 0),
    ("w3a3", "heads", "rebuild", 0),
    *(("w3a3", images, "correct", seed) for seed in (1, 2) for images in ("noise", "heads", "own")),
    *(("w3a3", "own", "rebuild", seed) for seed in (1, 2)),
)
"""Width, pictures, stages and seed, those that say most first."""
METHODS: dict[str, tuple[str, ...]] = {
    "psaq": ("method=psaq", "quantizer=transformer_psaq"),
    "mimiq": (
        *("method=mimiq_style", "quantizer=transformer_lsq", "schedule.images=64"),
        *("schedule.image_batch=32", "schedule.student_steps=300", "schedule.student_batch=16"),
        *("stages.distillation.optimizer.name=adam", "stages.distillation.optimizer.lr=1e-4"),
    ),
}
"""Methods with the placement of their authors, which no other row has."""
OF_METHODS = (("psaq", "w8a8"), ("psaq", "w4a8"), ("mimiq", "w4a4"), ("mimiq", "w3a3"))


def runs() -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the words of every run."""
    for width, images, stages, seed in RUNS:
        weights, activations = WIDTHS[width]
        before = "synthesis," if images in MADE else ""
        own = [
            f"order=[{before}{REBUILD if stages == 'rebuild' else CORRECT}]",
            f"quantizer.weight_bits={weights}",
            f"quantizer.activation_bits={activations}",
            f"seed={seed}",
        ]
        yield f"{images}_{width}_{stages}_seed{seed}", [*COMMON, *STAGES, *IMAGES[images], *own]
    for method, width in OF_METHODS:
        weights, activations = WIDTHS[width]
        bits = [f"quantizer.weight_bits={weights}", f"quantizer.activation_bits={activations}"]
        yield f"{method}_{width}_whole_seed0", [*COMMON, *METHODS[method], *bits, "seed=0"]
    yield "resnet20_w1a8_correct_seed0", list(ONE_BIT_CNN)


def bank_of(name: str) -> list[str]:
    """Return the word that loads the pictures of a seed where they are made."""
    images, seed = name.split("_")[0], name.rsplit("_", maxsplit=1)[1]
    made = sorted(Path().glob(f"{images}_*_{seed}/samples.safetensors"))
    return [f"sources.bank.load={made[0]}"] if made and images in MADE else []


def files() -> list[Path]:
    """Return weights and pictures."""
    folder = Path(os.environ["CIFAR10"])
    return [Path(os.environ["VIT"]) / WEIGHTS, folder / CNN, *split_pictures(folder / DATA)]


def table() -> None:
    """Print one row a run."""
    print("| pictures | W/A | stages | seed | top-1 | handed back now | agreement | error |")
    for name, _ in runs():
        path = HERE / "results" / name / "result.json"
        if path.exists():
            r = json.loads(path.read_text())
            images, width, stages, seed = name.split("_")
            error = r["judged"][list(r["judged"])[-1]]["reference"]["error"]
            now = r["judged"][handed_back_now(r)]["evaluation"]["top1"]
            cells = f"{r['quantized_top1']:.1f}", f"{now:.1f}"
            more = f"{r['teacher_agreement']:.1f}", f"{error:.4f}"
            print("|", " | ".join([images, width, stages, seed[-1], *cells, *more]), "|")


if __name__ == "__main__":
    command(__doc__, HERE, runs, files, more=bank_of, table=table)
