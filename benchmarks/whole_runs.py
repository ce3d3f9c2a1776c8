"""Seconds of each stage and the peak memory of whole runs, one fresh process each.

    python -m benchmarks.whole_runs --threads 2

Random weights, which take as long as trained ones; prints one Markdown row a run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.imagenet_scale import row
from benchmarks.product import composed, temporary_folder
from hast_lightning.runs import pipeline
from hast_lightning.runs.assembly import prepare_torch

NETWORKS: dict[str, tuple[str, ...]] = {
    "resnet20_cifar10": ("schedule=ten_minutes",),
    # So few images and steps that what one takes is seen in minutes, in what fits the memory.
    "mobilenetv1_x025": (
        *("schedule=evening_imagenet", "schedule.images=64", "schedule.image_steps=20"),
        *("schedule.calibration_steps=2", "schedule.student_steps=20", "schedule.unit_steps=20"),
        *("stages.calibration.batch_size=16", "safeguard.images=16"),
    ),
}
FEW = ("stages.correction.samples=64",)
METHODS: dict[tuple[str, str], tuple[str, ...]] = {
    ("resnet20_cifar10", "without_training"): ("quantizer=mse",),
    ("resnet20_cifar10", "reconstruct"): ("quantizer=lsq",),
    ("resnet20_cifar10", "recommended"): ("quantizer=lsq",),
    ("mobilenetv1_x025", "without_training"): ("quantizer=mse", *FEW),
    ("mobilenetv1_x025", "recommended_imagenet"): ("quantizer=lsq", *FEW),
    ("mobilenetv1_x025", "hast_imagenet_adam"): ("quantizer=lsq", "schedule.student_batch=16"),
}
"""What is corrected, rebuilt and trained, each with the quantizer that it is for."""
HEADER = ("network", "method", "seconds of the stages", "seconds", "peak memory, GB")


@dataclass(frozen=True)
class Task:
    """One run.

    Attributes:
        network: One of :data:`NETWORKS`.
        method: One that :data:`METHODS` has for it.
        threads: Of the CPU.
        more: Further words of the command line.
    """

    network: str
    method: str
    threads: int
    more: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """Return the words of the command line."""
        return [
            *(f"method={self.method}", "quantizer.bits=3"),
            *(f"model={self.network}", "model.pretrained=false", "data=none"),
            *("callbacks=quiet", "export=none", "report=false", "trainer.accelerator=cpu"),
            *(f"trainer.threads={self.threads}", "trainer.channels_last=true"),
            *("trainer.precision=auto", *NETWORKS[self.network]),
            *(*METHODS[self.network, self.method], *self.more),
        ]


def measure(task: Task) -> str:
    """Carry out a run, and return its row."""
    with temporary_folder() as name:
        config = composed(*task.words)
        prepare_torch(config)
        result = pipeline.run(config, Path(name), "benchmark")
    assert result is not None
    stages = {stage: s for stage, s in result.seconds_by_stage.items() if stage != "evaluation"}
    each = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in stages.items())
    peak = (result.peak_memory_bytes or 0) / 1e9
    return row(task.network, task.method, each, f"{sum(stages.values()):.0f}", f"{peak:.1f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print, row by row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole_runs", description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    # A copy of this process has everything imported, and computed nothing yet.
    context = multiprocessing.get_context("fork")
    print(row(*HEADER), row(*["---"] * len(HEADER)), sep="\n", flush=True)
    for network, method in METHODS:
        if network in options.networks:
            # One process each, so that none inherits the peak of another.
            with context.Pool(1) as pool:
                print(pool.apply(measure, (Task(network, method, options.threads),)), flush=True)


if __name__ == "__main__":
    main()
