"""The ``schedule`` group: the budget of a run, in numbers that every method understands."""

from __future__ import annotations

from dataclasses import dataclass

from hast_lightning.config.renamed import renamed
from hast_lightning.core.checks import require_choice, require_range
from hast_lightning.errors import ConfigurationError
from hast_lightning.stages.learning_rate import POLICIES


@dataclass
class ScheduleConfig:
    """The budget of a run. What is null is the method's own, as it was released."""

    name: str = "released"
    """What the budget is called."""
    images: int | None = None
    """Images of a bank."""
    image_batch: int | None = None
    """Images that are made together."""
    image_steps: int | None = None
    """Steps that each batch of images gets."""
    generator_steps: int | None = None
    """Steps of a generator in a stage of its own."""
    calibration_steps: int | None = None
    """Steps that observe activation ranges."""
    student_steps: int | None = None
    """Steps that train the student."""
    student_batch: int | None = None
    """Samples of a student step."""
    unit_steps: int | None = None
    """Steps that rebuild each unit of the student."""
    unit_batch: int | None = None
    """Samples of a step that rebuilds a unit."""
    learning_rate: str | None = None
    """How the student's learning rate moves: ``constant``, ``multistep`` or ``cosine``."""

    def __post_init__(self) -> None:
        if line := renamed(f"schedule.name={self.name}"):
            raise ConfigurationError(line)
        least = {"student_steps": 0}
        for name in (
            *("images", "image_batch", "image_steps", "generator_steps", "calibration_steps"),
            *("student_steps", "student_batch", "unit_steps", "unit_batch"),
        ):
            if getattr(self, name) is not None:
                require_range(f"schedule.{name}", getattr(self, name), least.get(name, 1))
        if self.learning_rate is not None:
            require_choice("schedule.learning_rate", self.learning_rate, POLICIES)
