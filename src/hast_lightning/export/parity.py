"""An exported network beside the student it was made of: the same predictions, and how fast."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from hast_lightning.errors import ExportError
from hast_lightning.export.artefact import Network

REPEATS = 7
PERCENT_DIGITS = 4


@dataclass(frozen=True)
class Parity:
    """What one pass over a set of images found.

    Attributes:
        images: How many there were.
        agreeing: On how many of them both predict the same class.
        largest_difference: Between two logits, over all images and classes.
    """

    images: int
    agreeing: int
    largest_difference: float

    @property
    def agreement(self) -> float:
        """Share of the images with the same prediction, in percent."""
        return round(100 * self.agreeing / self.images, PERCENT_DIGITS)

    def is_enough(self, min_agreement: float) -> bool:
        """Whether at least ``min_agreement`` percent agree, or all but one.

        A value on the border between two roundings goes to one side in one engine and to the
        other in another, which may decide an image that was undecided; of few images one is more
        than a thousandth.
        """
        allowed = int(self.images * (100 - min_agreement) / 100 + 1e-6)
        one = 0 if min_agreement == 100 else 1
        return self.images - self.agreeing <= max(allowed, one)


@torch.no_grad()
def compare(exported: Network, student: Network, batches: Iterable[Tensor]) -> Parity:
    """Run both on ``batches`` of normalized images (N, C, H, W) on the CPU.

    Raises:
        ExportError: the exported network puts out NaN or infinite logits.
    """
    images, agreeing, largest = 0, 0, 0.0
    for batch in batches:
        found, expected = exported(batch), student(batch)
        if not bool(found.isfinite().all()):
            raise ExportError("the exported network puts out NaN or infinite logits")
        images += len(batch)
        agreeing += int((found.argmax(dim=1) == expected.argmax(dim=1)).sum())
        largest = max(largest, float((found - expected).abs().max()))
    return Parity(images, agreeing, largest)


@torch.no_grad()
def latencies(first: Network, second: Network, images: Tensor) -> tuple[float, float]:
    """Median milliseconds of a pass of each over ``images``, measured in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS + 1):
        for network, kept in zip((first, second), times, strict=True):
            start = time.perf_counter()
            network(images)
            kept.append(1000 * (time.perf_counter() - start))
    # The first pass of an engine allocates its memory.
    warm = [statistics.median(kept[1:]) for kept in times]
    return warm[0], warm[1]
