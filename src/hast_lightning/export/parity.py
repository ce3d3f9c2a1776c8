"""An exported network beside the student it was made of: the same predictions, and how fast."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from hast_lightning.errors import ExportError
from hast_lightning.export.artifact import Network

REPEATS = 7
PERCENT_DIGITS = 4


@dataclass(frozen=True)
class Parity:
    """What one pass over a set of images found.

    Attributes:
        images: How many there were.
        agreeing: On how many of them both predict the same class.
        largest_difference: Between two logits, over all images and classes.
        lead: Of the student's best logit over its second, on the median image.
        lost_lead: Of the student's class over the exported network's, where they differ: the
            largest, 0 where they agree on all images.
    """

    images: int
    agreeing: int
    largest_difference: float
    lead: float
    lost_lead: float

    @property
    def agreement(self) -> float:
        """Share of the images with the same prediction, in percent."""
        return round(100 * self.agreeing / self.images, PERCENT_DIGITS)

    def is_enough(self, min_agreement: float) -> bool:
        """Whether at most ``100 - min_agreement`` percent of the images differ, or one.

        Of ``n`` images ``n * (100 - min_agreement) / 100`` may differ, rounded down, but one at
        least: at 99.9 one of up to 1,999 images, two of 2,000, ten of 10,000. At 100 none may.

        A sum of floats depends on the order of its terms, and a value on the border between two
        integers then goes to one side in one engine and to the other in another. So even the
        student differs from itself on undecided images, in batches of another size, say. It says
        nothing against a file that it does so, too, and of less than 1,000 images one is more
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
    largest = 0.0
    leads, lost_leads = [], []
    for batch in batches:
        found, expected = exported(batch), student(batch)
        if not bool(found.isfinite().all()):
            raise ExportError("the exported network puts out NaN or infinite logits")
        largest = max(largest, float((found - expected).abs().max()))
        best = expected.topk(min(2, expected.shape[1]), dim=1).values
        leads.append(best[:, 0] - best[:, -1])
        found_class = found.argmax(dim=1, keepdim=True)
        differs = found_class.squeeze(1) != expected.argmax(dim=1)
        lost_leads.append((best[:, 0] - expected.gather(1, found_class).squeeze(1))[differs])
    lead, lost_lead = torch.cat(leads), torch.cat(lost_leads)
    return Parity(
        images=len(lead),
        agreeing=len(lead) - len(lost_lead),
        largest_difference=largest,
        lead=float(lead.median()),
        lost_lead=float(lost_lead.max()) if len(lost_lead) else 0.0,
    )


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
