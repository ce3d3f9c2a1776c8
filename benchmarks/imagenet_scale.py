"""Time and memory of the recipes for ImageNet on a CPU, one fresh process a measurement.

    python -m benchmarks.imagenet_scale --threads 1

Random weights and 224 pixels, the real training loop; prints one Markdown row a measurement.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from benchmarks.product import composed, temporary_folder
from hast_lightning.config import Config
from hast_lightning.files.tensors import write_tensors
from hast_lightning.records.folder import Origin
from hast_lightning.runs import pipeline
from hast_lightning.runs.assembly import build, prepare_torch
from hast_lightning.sources.image_bank import FILE_KIND

RECIPES = ("mobilenetv1_w4a4", "mobilenetv2_w4a4", "resnet18_w4a4", "resnet50_w4a4")
STAGES = ("synthesis", "student")
STEPS = 2
"""The first warms up, the second counts."""
SIDE = 224
HEADER = ("recipe", "step", "batch", "CPU seconds", "peak memory, GB")


@dataclass(frozen=True)
class Task:
    """One measurement: ``STEPS`` steps of a stage with batches of one size."""

    recipe: str
    stage: str
    batch: int
    threads: int

    def compose(self, folder: Path) -> Config:
        """The recipe with nothing but what is measured."""
        if self.stage == "student":
            bank = folder / "bank.safetensors"
            images, labels = torch.randn(self.batch, 3, SIDE, SIDE), torch.arange(self.batch)
            write_tensors(bank, FILE_KIND, {"images": images, "labels": labels})
            # Ranges are calibrated as in the recipe, by a generator that is trained meanwhile.
            what = [
                "order=[calibration,distillation]",
                f"sources.bank.load={bank}",
                f"sources.calibration.batch_size={self.batch}",
                "schedule.calibration_steps=1",
                f"schedule.student_steps={STEPS}",
                f"schedule.student_batch={self.batch}",
            ]
        else:
            what = ["order=[synthesis]", f"schedule.image_steps={STEPS}"]
        return composed(
            f"+experiment={self.recipe}",
            *what,
            f"schedule.images={self.batch}",
            f"schedule.image_batch={self.batch}",
            "model.pretrained=false",
            "data=none",
            "data.holdout=0.001",
            "callbacks=quiet",
            "trainer.accelerator=cpu",
            f"trainer.threads={self.threads}",
        )


class LastStep(Callback):
    """Processor seconds, of all threads, of the last step."""

    def __init__(self) -> None:
        self._start = 0.0
        self.seconds = 0.0

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self._start = time.process_time()

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        """Stop it."""
        self.seconds = time.process_time() - self._start


def measure(task: Task) -> str:
    """One row of the table."""
    clock = LastStep()
    with temporary_folder() as name:
        folder = Path(name)
        config = task.compose(folder)
        prepare_torch(config)
        pipeline.fit(build(config, folder, Origin("benchmark", None, {})), [], [clock], None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return row(task.recipe, task.stage, task.batch, f"{clock.seconds:.1f}", f"{peak:.1f}")


def row(*cells: object) -> str:
    """A line of Markdown."""
    return f"| {' | '.join(map(str, cells))} |"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of ``python -m benchmarks.imagenet_scale``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.imagenet_scale")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--batch", type=int, help="images (8 a synthesis step, 4 a student's)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print, row by row."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    sizes = {stage: options.batch or size for stage, size in zip(STAGES, (8, 4), strict=True)}
    tasks = [
        Task(recipe, stage, sizes[stage], options.threads)
        for recipe in options.recipes
        for stage in options.stages
    ]
    # A copy of this process has everything imported, and computed nothing yet.
    context = multiprocessing.get_context("fork")
    print(row(*HEADER), row(*["---"] * len(HEADER)), sep="\n", flush=True)
    for task in tasks:
        # One process each, so that none inherits the peak of another.
        with context.Pool(1) as pool:
            print(pool.apply(measure, (task,)), flush=True)


if __name__ == "__main__":
    main()
