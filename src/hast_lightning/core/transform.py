"""A transform: changes a batch before a network sees it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hast_lightning.core.batch import Batch
from hast_lightning.core.network import Network
from hast_lightning.core.part import Part


@dataclass(eq=False, repr=False, kw_only=True)
class Transform(Part, ABC):
    """Changes a batch, differentiably in its inputs.

    Attributes:
        by_gradient: The transform is made from the gradient of the student's loss on the batch.
            A student step trains on the batch itself and on what the transform makes of it.
        mark: What curves on such a batch are called by, behind the name of their term.
    """

    enabled: bool = True
    """False leaves the transform out: the switch of an ablation."""

    by_gradient: ClassVar[bool] = False
    mark: ClassVar[str] = ""

    def bind(self, teacher: Network, student: Network) -> None:
        """Look at both networks before anything is computed.

        Raises:
            ModelError: the networks do not have what the transform is about.
        """

    @abstractmethod
    def forward(self, batch: Batch, gradient: Tensor | None = None) -> Batch:
        """Return the changed batch; ``gradient`` is the loss's by the inputs if by gradient."""
