"""The student's optimizer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import optim

from hast_lightning.core.checks import MAX_RATE, require_choice, require_range

NAMES = ("sgd", "adam", "adamw")


@dataclass
class Optimizer:
    """SGD, Adam or AdamW over the student's parameters."""

    name: str = "sgd"
    """``sgd``, ``adam`` or ``adamw``."""
    lr: float = 1e-5
    """Learning rate, before the schedule multiplies it."""
    momentum: float = 0.9
    """Momentum (sgd only)."""
    nesterov: bool = True
    """Momentum looks ahead, after Nesterov (sgd only)."""
    weight_decay: float = 1e-4
    """Weight decay of everything but learned step sizes."""
    clip_norm: float | None = None
    """Largest norm of the student's gradient, to which a longer one is shortened; null: any."""

    def __post_init__(self) -> None:
        require_choice("name", self.name, NAMES)
        require_range("lr", self.lr, 0, MAX_RATE, open_minimum=True)
        require_range("momentum", self.momentum, 0, 0.9999)
        require_range("weight_decay", self.weight_decay, 0, MAX_RATE)
        if self.clip_norm is not None:
            require_range("clip_norm", self.clip_norm, 0, open_minimum=True)

    def unused(self) -> Collection[str]:
        """Return the settings that the optimizer of that name does not have."""
        return () if self.name == "sgd" else ("momentum", "nesterov")

    def build(self, groups: list[dict[str, Any]]) -> optim.Optimizer:
        """Return an optimizer of groups of parameters; what a group sets is its own."""
        if self.name == "sgd":
            return optim.SGD(
                groups,
                lr=self.lr,
                momentum=self.momentum,
                nesterov=self.nesterov and self.momentum > 0,
                weight_decay=self.weight_decay,
            )
        kind = optim.Adam if self.name == "adam" else optim.AdamW
        return kind(groups, lr=self.lr, weight_decay=self.weight_decay)
