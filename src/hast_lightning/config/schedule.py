"""The ``schedule`` group."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from hast_lightning.config.checks import require_choice, require_range
from hast_lightning.errors import ConfigurationError

SCHEDULES = ("alternating", "two_stage")
LEARNING_RATE_POLICIES = ("constant", "multistep", "cosine")


@dataclass
class LearningRateConfig:
    """How the student's learning rate moves over its steps."""

    policy: str = "multistep"
    """``constant``, ``multistep`` (falls at the milestones) or ``cosine`` (falls to zero)."""
    milestones: list[int] = field(default_factory=list)
    """Student steps after which the rate is multiplied by ``factor`` (multistep)."""
    factor: float = 0.1
    """What the rate is multiplied by at a milestone."""
    warmup_steps: int = 0
    """Student steps of linear warm-up from zero (any policy)."""

    def __post_init__(self) -> None:
        require_choice("schedule.learning_rate.policy", self.policy, LEARNING_RATE_POLICIES)
        require_range("schedule.learning_rate.factor", self.factor, 0, 1, open_minimum=True)
        require_range("schedule.learning_rate.warmup_steps", self.warmup_steps, 0)
        for milestone in self.milestones:
            require_range("schedule.learning_rate.milestones", milestone, 0)
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ConfigurationError(
                f"schedule.learning_rate.milestones={list(self.milestones)} must increase"
            )


@dataclass
class ScheduleConfig:
    """Which step comes when."""

    name: str = MISSING
    """``two_stage``: all synthesis, then all distillation; ``alternating``: a step of both in each
    iteration."""
    synthesis_steps: int | None = None
    """Steps of the sample source; none: as many as the image bank needs to be filled once."""
    calibration_steps: int = MISSING
    """Steps that only observe activation ranges; the ranges are frozen after them."""
    student_steps: int = MISSING
    """Steps that train the student."""
    learning_rate: LearningRateConfig = field(default_factory=LearningRateConfig)

    def __post_init__(self) -> None:
        require_choice("schedule.name", self.name, SCHEDULES)
        if self.synthesis_steps is not None:
            require_range("schedule.synthesis_steps", self.synthesis_steps, 1)
            if self.name == "alternating":
                raise ConfigurationError(
                    f"schedule.synthesis_steps={self.synthesis_steps}: schedule.name=alternating "
                    "synthesizes once in every iteration"
                )
        require_range("schedule.calibration_steps", self.calibration_steps, 1)
        require_range("schedule.student_steps", self.student_steps, 0)
