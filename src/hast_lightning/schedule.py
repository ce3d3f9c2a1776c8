"""Which step comes when: pure functions of the step counter.

Everything here is a function of the number of the iteration alone: no step has to know
what the ones before it did.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from hast_lightning.config import LearningRateConfig, ScheduleConfig


class Action(Enum):
    """One thing that an iteration does; an iteration does one or several, in order."""

    SYNTHESIZE = "synthesis"
    CALIBRATE = "calibration"
    FREEZE_RANGES = "freeze_ranges"
    DISTILL = "distillation"


class StageProgress(NamedTuple):
    """Where a run stands: ``step`` of ``total`` steps (counted from 1) of ``stage``."""

    stage: str
    step: int
    total: int


class ScheduledModule(Protocol):
    """What callbacks may read of the module that goes through a schedule.

    Attributes:
        iteration: Iterations done.
        ranges_frozen: Whether the student is calibrated.
    """

    iteration: int
    ranges_frozen: bool

    @property
    def progress(self) -> StageProgress:
        """Where the last iteration stood."""
        ...

    @property
    def stage_totals(self) -> dict[str, int]:
        """Iterations of each stage, in order."""
        ...


@dataclass(frozen=True)
class Schedule:
    """The order of the steps of one run.

    ``two_stage`` is the released form of HAST: all synthesis, then range calibration,
    then all distillation. ``alternating`` is one generator step and one student step in
    every iteration (GDFQ, and the form this project is named for); the student only
    calibrates for the first ``calibration_steps`` iterations.

    Attributes:
        name: ``two_stage`` or ``alternating``.
        synthesis_steps: Steps of the sample source before anything else (two_stage only).
        calibration_steps: Steps that observe activation ranges.
        student_steps: Steps that train the student.
    """

    name: str
    synthesis_steps: int
    calibration_steps: int
    student_steps: int

    @property
    def stages(self) -> dict[str, int]:
        """Iterations of each stage, in order of execution; empty stages are left out."""
        if self.name == "two_stage":
            stages = {
                "synthesis": self.synthesis_steps,
                "calibration": self.calibration_steps,
                "distillation": self.student_steps,
            }
        else:
            stages = {"warmup": self.calibration_steps, "alternating": self.student_steps}
        return {stage: steps for stage, steps in stages.items() if steps}

    @property
    def iterations(self) -> int:
        """Iterations of the whole run."""
        return sum(self.stages.values())

    def progress(self, iteration: int) -> StageProgress:
        """Stage that ``iteration`` (from 0) belongs to, and its number in it (from 1)."""
        start = 0
        for stage, total in self.stages.items():
            if iteration < start + total:
                return StageProgress(stage, iteration - start + 1, total)
            start += total
        raise IndexError(f"iteration {iteration} of a run of {start}")

    def is_logged(self, iteration: int, interval: int) -> bool:
        """Whether ``iteration`` (from 0) is one of every ``interval``, or the last of its stage.

        The last one shows what the stage has come to.
        """
        _, step, total = self.progress(iteration)
        return iteration % interval == 0 or step == total

    def actions(self, iteration: int) -> tuple[Action, ...]:
        """What ``iteration`` (from 0) does, in order."""
        stage, step, total = self.progress(iteration)
        if stage == "synthesis":
            return (Action.SYNTHESIZE,)
        if stage == "distillation":
            return (Action.DISTILL,)
        if stage == "alternating":
            return (Action.SYNTHESIZE, Action.DISTILL)
        calibrate = (
            (Action.SYNTHESIZE, Action.CALIBRATE) if stage == "warmup" else (Action.CALIBRATE,)
        )
        return (*calibrate, Action.FREEZE_RANGES) if step == total else calibrate

    def completed(self, action: Action, iterations: int) -> int:
        """How often ``action`` was done in the first ``iterations`` iterations."""
        two_stage = self.name == "two_stage"
        calibration_start = self.synthesis_steps if two_stage else 0
        if action is Action.SYNTHESIZE:
            start, total = 0, self.synthesis_steps if two_stage else self.iterations
        elif action is Action.DISTILL:
            start, total = calibration_start + self.calibration_steps, self.student_steps
        elif action is Action.CALIBRATE:
            start, total = calibration_start, self.calibration_steps
        else:  # the ranges are frozen once, in the last step of the calibration
            total = min(1, self.calibration_steps)
            start = calibration_start + self.calibration_steps - total
        return min(max(iterations - start, 0), total)


def build_schedule(
    config: ScheduleConfig, steps_to_fill: int | None, stages: Sequence[str], loaded: bool
) -> Schedule:
    """The schedule of a run.

    Args:
        config: The ``schedule`` group.
        steps_to_fill: Steps that the sample source needs to be complete; none if it has no end.
        stages: The agenda of the run: without ``distill`` only the synthesis is planned.
        loaded: The samples were loaded, so that none need to be synthesized first.
    """
    synthesis = config.synthesis_steps if config.synthesis_steps is not None else steps_to_fill
    distill = "distill" in stages
    return Schedule(
        name=config.name if distill else "two_stage",
        synthesis_steps=0 if loaded else (synthesis or 0),
        calibration_steps=config.calibration_steps if distill else 0,
        student_steps=config.student_steps if distill else 0,
    )


def learning_rate_factor(config: LearningRateConfig, step: int, total: int) -> float:
    """What the student's base learning rate is multiplied by at ``step`` (from 0) of ``total``.

    ``multistep`` multiplies by ``factor`` once for every milestone reached (methods of GDFQ
    and HAST), ``cosine`` goes from 1 to 0 (Loshchilov and Hutter, 2017). The warm-up is
    linear and ends at 1 at step ``warmup_steps``.
    """
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.policy == "multistep":
        return warmup * config.factor ** sum(step >= milestone for milestone in config.milestones)
    if config.policy == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * step / max(total, 1)))
    return warmup
