"""Steps of a training loop, in place of training data."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import IterableDataset


class StepTicker(IterableDataset[int]):
    """Yields the step numbers ``start, ..., stop - 1``, the same on every rank.

    An iterable dataset, because Lightning gives a map-style one a distributed sampler, which
    would divide the steps by the world size. It has no length, because Lightning warns of
    iterable datasets that have one. Use it without worker processes: each would tick every step.

    Args:
        start: the first step; the number of steps already done when a run is resumed.
        stop: one past the last step.

    Raises:
        ValueError: ``start`` lies behind ``stop``.
    """

    def __init__(self, start: int, stop: int) -> None:
        if start > stop:
            raise ValueError(f"StepTicker: start={start} lies behind stop={stop}")
        self.start = start
        self.stop = stop

    def __iter__(self) -> Iterator[int]:
        """Yield the steps in order; every iteration begins anew at ``start``."""
        return iter(range(self.start, self.stop))
