"""Student steps on one and two processes: steps a second, and what a step spends on messages.

``python -m benchmarks.scaling`` prints one Markdown table. Processes talk through gloo, on one
CPU thread each; on CUDA (``--device cuda``) through NCCL, one GPU each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from benchmarks.measure import machine
from benchmarks.product import composed
from hast_lightning.runs import pipeline
from hast_lightning.runs.assembly import Run
from hast_lightning.runtime.ranks import average_gradients, rank
from hast_lightning.stages import distill

WARMUP = 5
HEADER = (
    "processes",
    "images a step and process",
    "steps/s",
    "images/s",
    "scaling",
    "message",
    "in messages",
    "share",
)
MEBIBYTE = 2**20


class Stopwatch(Callback):
    """Seconds of every student step, and of the messages in it."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.messages: list[float] = []
        self.bytes = 0
        self._message = 0.0
        self._start = 0.0

    def average(self, parameters: Any) -> None:
        """As the product averages, with a clock; waiting for the slower process counts."""
        parameters = list(parameters)
        gradients = [p.grad for p in parameters if p.grad is not None]
        self.bytes = sum(g.numel() * g.element_size() for g in gradients)
        start = time.perf_counter()
        average_gradients(parameters)
        self._message += time.perf_counter() - start

    def on_train_batch_start(self, *_: Any) -> None:
        """Begin a step."""
        self._message, self._start = 0.0, time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Count it, if it was the student's."""
        if pl_module.progress.stage == "distillation":  # type: ignore[union-attr]
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize()
            self.steps.append(time.perf_counter() - self._start)
            self.messages.append(self._message)


def measure(folder: Path, overrides: Sequence[str]) -> None:
    """One process of a run: train and leave what the stopwatch says."""
    watch, fit = Stopwatch(), pipeline.fit

    def watched(run: Run, loggers: list[Any], callbacks: list[Callback], start: Any) -> None:
        fit(run, loggers, [*callbacks, watch], start)

    pipeline.fit = watched  # type: ignore[assignment]
    distill.average_gradients = watch.average  # type: ignore[assignment]
    warnings.filterwarnings("ignore")
    pipeline.run(composed(*overrides), folder / "run", "benchmarks.scaling")
    found = {"steps": watch.steps, "messages": watch.messages, "bytes": watch.bytes}
    (folder / f"rank{rank()}.json").write_text(json.dumps(found))


def overrides_of(options: argparse.Namespace, processes: int) -> list[str]:
    """The configuration of a run that is nearly all student steps."""
    batch = options.batch
    return [
        f"trainer.accelerator={'gpu' if options.device == 'cuda' else 'cpu'}",
        f"trainer.devices={processes}",
        "trainer.threads=1",
        "callbacks.progress=false",
        "evaluate=false",
        "report=false",
        "export=none",
        f"schedule.images={2 * batch}",
        f"schedule.image_batch={batch}",
        "schedule.image_steps=1",
        "schedule.calibration_steps=1",
        f"schedule.student_steps={WARMUP + options.steps}",
        f"schedule.student_batch={batch}",
        *options.override,
    ]


def run_on(options: argparse.Namespace, processes: int) -> dict[str, Any]:
    """Train on so many processes; what the first of them measured, without the warm-up."""
    with tempfile.TemporaryDirectory(prefix="hast-benchmark-") as folder:
        arguments = ["--worker", folder, *overrides_of(options, processes)]
        subprocess.run(
            [sys.executable, "-m", "benchmarks.scaling", *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        found = json.loads((Path(folder) / "rank0.json").read_text())
    for name in ("steps", "messages"):
        found[name] = found[name][WARMUP:]
    return dict(found)


def row(options: argparse.Namespace, processes: int, found: dict[str, Any], one: float) -> str:
    """A line of the table; ``one`` is the median step of one process in seconds."""
    step, message = statistics.median(found["steps"]), statistics.median(found["messages"])
    values = [
        str(processes),
        str(options.batch),
        f"{1 / step:.2f}",
        f"{processes * options.batch / step:.1f}",
        f"{one / step:.0%}",
        f"{found['bytes'] / MEBIBYTE:.2f} MiB" if processes > 1 else "–",
        f"{1000 * message:.1f} ms" if processes > 1 else "–",
        f"{message / step:.0%}" if processes > 1 else "–",
    ]
    return f"| {' | '.join(values)} |"


def main(arguments: Sequence[str]) -> None:
    """Measure one process, then two, and print the table."""
    if arguments[:1] == ["--worker"]:
        measure(Path(arguments[1]), arguments[2:])
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        help="key=value of the configuration, such as +experiment=...; the bundled network if none",
    )
    parser.add_argument("--steps", type=int, default=50, help="student steps that count (50)")
    parser.add_argument("--batch", type=int, default=64, help="images a step and process (64)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(machine(torch.device(options.device)), flush=True)
    print(f"\n| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}")
    one = 0.0
    for processes in options.processes:
        found = run_on(options, processes)
        one = one or statistics.median(found["steps"])
        print(row(options, processes, found, one), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
