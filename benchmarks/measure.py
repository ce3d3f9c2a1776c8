"""Clocks, counters and what the machine can do."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

MATMUL_SIZE = 2048

Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "processor": time.process_time}
"""``processor`` adds up the seconds of all threads: what a busy machine leaves comparable."""


def finish(device: torch.device) -> None:
    """Wait for everything that ``device`` was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(
    work: Callable[[], object], device: torch.device, clock: Clock = time.perf_counter
) -> float:
    """Seconds of one call, until the device is done."""
    finish(device)
    start = clock()
    work()
    finish(device)
    return clock() - start


@dataclass
class Comparison:
    """Interleaved times of two ways to do the same: ``product[i]`` ran next to ``plain[i]``.

    Attributes:
        name: What was done.
        product: Seconds of each run of the product.
        plain: Seconds of each run of the plain implementation.
        flops: Floating-point operations that the mathematics needs for one run.
        goal: Largest wanted ratio, or none.
        deviation: Relative deviation of the first loss from the plain one.
    """

    name: str
    product: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    flops: int = 0
    goal: float | None = None
    deviation: float = float("nan")

    @property
    def ratio(self) -> float:
        """Median time of the product over the median time of the plain implementation."""
        return statistics.median(self.product) / statistics.median(self.plain)

    @property
    def ratio_range(self) -> tuple[float, float]:
        """Smallest and largest ratio of two neighbouring runs."""
        ratios = [a / b for a, b in zip(self.product, self.plain, strict=True)]
        return min(ratios), max(ratios)

    def share(self, times: Sequence[float], rate: float) -> float:
        """Share of ``rate`` (operations a second) that the median of ``times`` reaches."""
        return self.flops / statistics.median(times) / rate


class MatmulRate:
    """The machine's float32 matrix-product rate, sampled all through a run."""

    def __init__(self, device: torch.device, clock: Clock) -> None:
        self.device = device
        self._clock = clock
        self._factors = torch.randn(2, MATMUL_SIZE, MATMUL_SIZE, device=device)
        self._rates: list[float] = []
        self._multiply()  # the first one warms up and is not counted

    def _multiply(self) -> float:
        return seconds_of(lambda: self._factors[0] @ self._factors[1], self.device, self._clock)

    def sample(self) -> None:
        """Measure once, now."""
        self._rates.append(2 * MATMUL_SIZE**3 / self._multiply())

    @property
    def median(self) -> float:
        """Operations a second."""
        return statistics.median(self._rates)


def processor_name() -> str:
    """The processor's model as the system names it."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine(device: torch.device) -> str:
    """One line: processor, cores, threads, device, version of torch."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    parts = [
        f"{processor_name()}, {cores} cores",
        f"{torch.get_num_threads()} threads",
        f"torch {torch.__version__}",
    ]
    if device.type == "cuda":
        parts.insert(0, torch.cuda.get_device_name(device))
    return "; ".join(parts)
