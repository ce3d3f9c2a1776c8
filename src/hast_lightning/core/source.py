"""A source: where batches come from. Some have parameters that train."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch.optim import Optimizer

from hast_lightning.core.batch import Batch
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.core.part import Part
from hast_lightning.errors import DataError

HELD_OUT_SEED = 20230326
COLLECTED_SEED = HELD_OUT_SEED + 1
"""Any fixed number: held-out samples must not depend on the seed of the run."""


class Site(NamedTuple):
    """What a source is built for.

    Attributes:
        pretrained: Gives the shape of inputs and the number of classes.
        holdout: Share of the samples that is kept from training.
        processes: Processes that train together.
        key: The source's own key, for messages: ``sources.bank``.
    """

    pretrained: PretrainedNetwork
    holdout: float = 0.0
    processes: int = 1
    key: str = "sources"


@dataclass(eq=False, repr=False, kw_only=True)
class Source(Part, ABC):
    """Gives batches to train and calibrate a student on; random numbers are torch's global ones.

    Attributes:
        shared: All ranks have one set of parameters; else each rank has its own state.
        label_kind: ``hard``, ``soft`` or ``none``: the targets of its batches.
        synthetic: The inputs are made, not taken.
    """

    load: str | None = None
    """A saved source of this kind (.safetensors) to use instead of making one."""

    shared: ClassVar[bool] = False
    label_kind: ClassVar[str] = "hard"
    synthetic: ClassVar[bool] = True

    def build(self, site: Site) -> None:
        """Allocate what the source consists of, or read it from ``load``.

        Raises:
            ConfigurationError: the settings do not fit the network.
            DataError: a file is missing, malformed or made for another network.
        """
        self.site = site

    @property
    def most(self) -> int | None:
        """Return how many samples there are to train on; none: as many as are asked for."""
        return None

    @abstractmethod
    def sample(self, count: int) -> Batch:
        """Return ``count`` samples to train on, detached."""

    def collect(self, count: int) -> Batch:
        """Return ``count`` samples to train on, always the same of the same source.

        Leaves no trace: neither in the source nor in the random numbers.
        """
        return self.of_seed(count, COLLECTED_SEED)

    def held_out(self, count: int) -> Batch:
        """Return at most ``count`` samples that :meth:`sample` never gives, always the same.

        Raises:
            DataError: there are none yet.
        """
        return self.of_seed(count, HELD_OUT_SEED)

    def of_seed(self, count: int, seed: int) -> Batch:
        """Return ``count`` samples that a seed decides; leaves no trace in the random numbers."""
        devices = list(range(torch.cuda.device_count()))
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(seed)
            return self.sample(count)

    def preview(self, count: int) -> Batch:
        """Return at most ``count`` samples to look at; leaves no trace in the numbers."""
        return self.held_out(count)

    def part_ways(self) -> None:
        """Draw afresh what must not be the same on every rank, from this rank's streams."""

    def own_state(self) -> dict[str, Any]:
        """Return what only this rank has, in plain values; empty where the ranks are alike."""
        return {}

    def set_own_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`own_state` returned on this rank."""

    def save(self, path: str | Path) -> None:
        """Write a file that ``load`` accepts, whole or not at all.

        Raises:
            DataError: there is nothing to save.
        """
        raise DataError(f"{path}: a source of kind {self.kind} has nothing to save")


@dataclass(eq=False, repr=False, kw_only=True)
class TrainedSource(Source):
    """A source whose samples are improved step by step.

    Attributes:
        hands_on: What was just proposed is as good as a sample, and an alternating student step
            takes it.
        batch_key: The setting that says how many samples are improved together.
    """

    hands_on: ClassVar[bool] = False
    batch_key: ClassVar[str] = "batch_size"

    @property
    def steps_to_fill(self) -> int | None:
        """Return the steps until every sample was made once; none: there is no natural end."""
        return None

    @property
    def steps_to_start(self) -> int:
        """Return the steps until there is a first finished sample."""
        return 0

    @property
    def filled_by_loading(self) -> bool:
        """Return whether the samples were read from a file, so that none need to be made."""
        return self.load is not None

    @abstractmethod
    def propose(self) -> Batch:
        """Return a batch to improve, differentiable in the source's parameters."""

    @abstractmethod
    def optimizers(self) -> Mapping[str, Optimizer]:
        """Return new optimizers of the source's parameters, by name."""

    def improved(self, loss: float, optimizers: Mapping[str, Optimizer]) -> Batch | None:
        """Be told, after a step of every optimizer, of the loss of the batch last proposed.

        Returns:
            The samples of all ranks that were finished by this step; none where none were.

        Raises:
            FloatingPointError: finished samples are NaN or infinite, which no loss will show.
        """
