"""A term: one weighted, differentiable loss, the same kind for synthesis and student."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hast_lightning.core.batch import Batch, Needs, Seen
from hast_lightning.core.checks import require_range
from hast_lightning.core.network import Network
from hast_lightning.core.part import Part


@dataclass(eq=False, repr=False, kw_only=True)
class Term(Part, ABC):
    """One loss of a step, whose loss is the sum of its terms times their weights.

    Attributes:
        title: What curves are called.
        parts: Names of the parts of which the term is the sum, where it gives several.
        needs: What the term wants to see, where that is the same for every network.
        by_sample: The loss is a mean over samples, by their weights where they have some, so that
            a student step may take the batch apart.
    """

    weight: float = 1.0
    """What the term is multiplied by; 0 leaves it out."""
    enabled: bool = True
    """False leaves the term out: the switch of an ablation."""

    title: ClassVar[str] = ""
    parts: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[Needs] = Needs()
    by_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_range("weight", self.weight, 0)

    @property
    def active(self) -> bool:
        """Return whether the term counts."""
        return self.enabled and self.weight != 0

    def name_parts(self, names: tuple[str, ...]) -> None:
        """Say what the parts are called of which the term is the sum."""
        vars(self)["parts"] = names

    def bind(self, teacher: Network, student: Network) -> Needs:
        """Look at both networks before anything is computed, and say what the term wants to see.

        Raises:
            ModelError: the networks do not have what the term is about.
        """
        return self.needs

    def finished(self, batch: Batch) -> None:
        """Be told of the samples that a source has finished, where ``Needs.finished`` asks."""

    @abstractmethod
    def forward(self, seen: Seen) -> Tensor:
        """Return the unweighted loss: a scalar, or (parts,) to be summed."""
