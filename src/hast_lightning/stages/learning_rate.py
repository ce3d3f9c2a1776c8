"""The student's learning rate over the steps of its stage."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from hast_lightning.core.checks import require_choice, require_range
from hast_lightning.errors import ConfigurationError

POLICIES = ("constant", "multistep", "cosine")


@dataclass
class LearningRate:
    """The learning rate over the steps of a stage, as multiples of the base rate."""

    policy: str = "multistep"
    """``constant``, ``multistep`` (falls at the milestones) or ``cosine`` (falls to zero)."""
    milestones: list[int] = field(default_factory=list)
    """Steps after which the rate is multiplied by ``factor`` (multistep)."""
    factor: float = 0.1
    """What the rate is multiplied by at a milestone."""
    warmup_steps: int = 0
    """Steps of linear warm-up from zero (any policy)."""

    def __post_init__(self) -> None:
        require_choice("policy", self.policy, POLICIES)
        require_range("factor", self.factor, 0, 1, open_minimum=True)
        require_range("warmup_steps", self.warmup_steps, 0)
        for milestone in self.milestones:
            require_range("milestones", milestone, 0)
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ConfigurationError(f"milestones={list(self.milestones)} must increase")

    def unused(self) -> Collection[str]:
        """Return the settings that the policy does not have."""
        return () if self.policy == "multistep" else ("milestones", "factor")

    def multiple(self, step: int, total: int) -> float:
        """Return what the base rate is multiplied by at ``step`` (from 0) of ``total``.

        ``multistep`` multiplies by ``factor`` once for every milestone reached (methods of GDFQ
        and HAST), ``cosine`` goes from 1 to 0 (Loshchilov and Hutter, 2017). The warm-up is
        linear and ends at 1 at step ``warmup_steps``.
        """
        warmup = min(1.0, (step + 1) / (self.warmup_steps + 1))
        if self.policy == "multistep":
            reached = sum(step >= milestone for milestone in self.milestones)
            return warmup * float(self.factor**reached)
        if self.policy == "cosine":
            return warmup * 0.5 * (1 + math.cos(math.pi * step / max(total, 1)))
        return warmup
