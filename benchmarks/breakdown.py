"""Where a student step and a synthesis iteration spend their operations and their time.

    python -m benchmarks.breakdown --threads 1

Prints one Markdown table a step: by kind of work, forward passes of the network that have as many
operations, the share of the time, and the rate as a share of the machine's matrix products.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.__main__ import NOTHING, quieten
from benchmarks.measure import CLOCKS, MatmulRate
from benchmarks.product import Setting, fit, temporary_folder
from benchmarks.steps import BANK_BATCHES, build_student_pair, build_synthesis_pair, student_words
from hast_lightning.runs.assembly import Run

CONVOLUTIONS = {
    "forward": ("mkldnn_convolution", "thnn_conv2d", "_slow_conv2d_forward"),
    "gradients": ("convolution_backward",),
}
KINDS: dict[str, tuple[str, ...]] = {
    **{f"convolutions, {way}": names for way, names in CONVOLUTIONS.items()},
    "BatchNorm": ("native_batch_norm", "native_batch_norm_backward"),
    "ReLU": ("clamp_min", "clamp_min_", "threshold_backward", "relu"),
    "sums and means": ("sum", "mean", "var_mean", "_MeanSquare", "_Statistics"),
}
"""Kinds of work by the names of operations, without the library's in front."""
OTHER = "the rest: rounding, additions, products, copies, the optimizer"
BATCH, SYNTHESIS_BATCH, IMAGE = 64, 256, (3, 32, 32)


class Watch(Callback):
    """Counts the operations of the first step, and times those of the last."""

    def __init__(self, steps: int = 3) -> None:
        self.flops: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self._left = steps
        self._first = FlopCounterMode(display=False)
        self._last = profile(activities=[ProfilerActivity.CPU])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Begin to count, or to time."""
        if not self.flops:
            self._first.__enter__()
        elif self._left == 1:
            self._last.__enter__()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Keep what was counted or timed."""
        if not self.flops:
            self._first.__exit__(None, None, None)
            counted = self._first.get_flop_counts()["Global"]
            self.flops = {str(operation): float(flops) for operation, flops in counted.items()}
        elif self._left == 1:
            self._last.__exit__(None, None, None)
            for event in self._last.key_averages():
                self.seconds[event.key] = event.self_cpu_time_total / 1e6
        self._left -= 1


def kind_of(operation: str) -> str:
    """Return the kind of work that an operation is, by its name in torch's profiler."""
    name = operation.rpartition("::")[2].removesuffix("Backward")
    return next((kind for kind, names in KINDS.items() if name in names), OTHER)


def passes(flops: Mapping[str, float], one: float) -> dict[str, float]:
    """Return how many forward passes of convolutions, by their kind, have as many operations."""
    found = dict.fromkeys(CONVOLUTIONS, 0.0)
    for operation, count in flops.items():
        if "convolution" in operation:
            found["gradients" if "backward" in operation else "forward"] += count / one
    return found


def lines(name: str, watch: Watch, one: float, rate: float) -> list[str]:
    """Return the table of a step."""
    counted = passes(watch.flops, one)
    whole = sum(watch.seconds.values())
    by_kind = dict.fromkeys((*KINDS, OTHER), 0.0)
    for operation, seconds in watch.seconds.items():
        by_kind[kind_of(operation)] += seconds
    total = sum(counted.values())
    rows = [f"| **{name}** | {total:.1f} | 100% | {total * one / whole / rate:.0%} |"]
    for kind, seconds in by_kind.items():
        done = counted.get(kind.removeprefix("convolutions, "), 0.0)
        cells = [f"{done:.1f}" if done else NOTHING, f"{seconds / whole:.0%}"]
        cells.append(f"{done * one / seconds / rate:.0%}" if done else NOTHING)
        rows.append(f"| {kind} | {' | '.join(cells)} |")
    return rows


def flops_of_pass(run: Run, count: int) -> float:
    """Return the operations of one forward pass of so many images through the network."""
    network = run.network.network
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(count, *IMAGE))
    return float(counter.get_total_flops())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.breakdown", description=__doc__)
    parser.add_argument("--threads", type=int, help="CPU threads (torch's own choice)")
    parser.add_argument("--batch", type=int, default=BATCH, help="images of a student step (64)")
    parser.add_argument(
        "--synthesis-batch", type=int, default=SYNTHESIS_BATCH, help="of an iteration (256)"
    )
    options = parser.parse_args(arguments)
    quieten()
    torch.set_flush_denormal(True)
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = CLOCKS["processor"]
    setting = Setting(
        "resnet20", torch.device("cpu"), options.batch, options.synthesis_batch, clock=clock
    )
    rate = MatmulRate(setting.device, clock)
    rate.sample()
    print("| what | passes | share of the time | rate |", "| --- | ---: | ---: | ---: |", sep="\n")
    with temporary_folder() as folder:
        words = student_words(setting, BANK_BATCHES, 3, augmented=True)
        run, _ = build_student_pair(setting, setting.compose(*words), Path(folder))
        name = f"student step, batch {options.batch}"
        print(*table(name, run, options.batch, rate), sep="\n")
    with temporary_folder() as folder:
        run, _ = build_synthesis_pair(setting, 3, Path(folder))
        count = options.synthesis_batch
        print(*table(f"synthesis iteration, batch {count}", run, count, rate), sep="\n")


def table(name: str, run: Run, count: int, rate: MatmulRate) -> list[str]:
    """Carry out three steps of a run, and return their table."""
    watch = Watch()
    fit(run, watch)
    rate.sample()
    return lines(name, watch, flops_of_pass(run, count), rate.median)


if __name__ == "__main__":
    main()
