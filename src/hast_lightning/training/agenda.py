"""Which step comes when: pure functions of the number of the iteration.

Everything here is a function of that number alone: no step has to know what the ones before it
did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from hast_lightning.core.batch import Progress
from hast_lightning.core.stage import Bench, Stage


@dataclass(frozen=True)
class Leg:
    """One stage as the agenda knows it.

    Attributes:
        stage: Its name.
        total: Its steps.
        groups: Groups of the metrics that its steps log.
        calibrates: The student's ranges are frozen in its last step.
        begins_anew: It leaves a calibrated student that none of those before compares with: it
            calibrates, or changes the bits of one that is calibrated.
        trains_student: Its steps change the student.
        improves: Sources whose samples its steps make better.
        student_steps: How many of its first steps train the student; none: all, or no step.
    """

    stage: str
    total: int
    groups: tuple[str, ...] = ()
    calibrates: bool = False
    begins_anew: bool = False
    trains_student: bool = False
    improves: tuple[str, ...] = ()
    student_steps: Callable[[int], int] | None = None


@dataclass(frozen=True)
class Agenda:
    """The stages of a run, one after the other.

    Attributes:
        legs: In order; stages without steps are left out.
    """

    legs: tuple[Leg, ...]

    @classmethod
    def of(cls, stages: Mapping[str, Stage], bench: Bench) -> Agenda:
        """Return the agenda of stages that were bound, in their order."""
        legs, calibrated = [], False
        for name, stage in stages.items():
            begins_anew = stage.calibrates or (stage.changes_bits and calibrated)
            calibrated = calibrated or stage.calibrates
            legs.append(
                Leg(
                    stage=name,
                    total=stage.length(bench),
                    groups=tuple(stage.all_terms),
                    calibrates=stage.calibrates,
                    begins_anew=begins_anew,
                    trains_student=stage.trains_student,
                    improves=stage.improves,
                    student_steps=stage.student_steps,
                )
            )
        return cls(tuple(leg for leg in legs if leg.total))

    @property
    def stages(self) -> dict[str, int]:
        """Return the steps of each stage, in order."""
        return {leg.stage: leg.total for leg in self.legs}

    @property
    def iterations(self) -> int:
        """Return the iterations of the whole run."""
        return sum(leg.total for leg in self.legs)

    @property
    def groups(self) -> tuple[str, ...]:
        """Return the groups of metrics that any stage logs, in order."""
        return tuple(dict.fromkeys(group for leg in self.legs for group in leg.groups))

    def progress(self, iteration: int) -> Progress:
        """Return the stage that ``iteration`` (from 0) belongs to, and its number in it (from 1).

        Raises:
            IndexError: the run has fewer iterations.
        """
        start = 0
        for leg in self.legs:
            if iteration < start + leg.total:
                return Progress(leg.stage, iteration - start + 1, leg.total)
            start += leg.total
        raise IndexError(f"iteration {iteration} of a run of {start}")

    def leg(self, stage: str) -> Leg:
        """Return the leg of a stage."""
        return next(leg for leg in self.legs if leg.stage == stage)

    def is_logged(self, iteration: int, interval: int) -> bool:
        """Return whether ``iteration`` (from 0) is one of every ``interval``, or ends its stage.

        The last step of a stage shows what it has come to.
        """
        _, step, total = self.progress(iteration)
        return iteration % interval == 0 or step == total

    def done(self, iterations: int) -> Iterator[tuple[Leg, int]]:
        """Yield each stage with the steps of it that are among the first ``iterations``."""
        start = 0
        for leg in self.legs:
            yield leg, min(max(iterations - start, 0), leg.total)
            start += leg.total

    def steps(self, iterations: int) -> dict[str, int]:
        """Return the steps done of each stage."""
        return {leg.stage: steps for leg, steps in self.done(iterations)}

    def steps_of_group(self, group: str, iterations: int) -> int:
        """Return the steps done that log a group of metrics."""
        return sum(steps for leg, steps in self.done(iterations) if group in leg.groups)

    def student_steps(self, iterations: int) -> int:
        """Return the steps done that train the student."""
        return sum(
            steps if leg.student_steps is None else leg.student_steps(steps)
            for leg, steps in self.done(iterations)
            if leg.trains_student
        )

    def synthesis_steps(self, source: str, iterations: int) -> int:
        """Return the steps done that improve a source."""
        return sum(steps for leg, steps in self.done(iterations) if source in leg.improves)

    def calibrated(self, iterations: int) -> bool:
        """Return whether the student's ranges are frozen, or none of the stages finds any."""
        done = [(leg, steps) for leg, steps in self.done(iterations) if leg.calibrates]
        return not done or any(steps == leg.total for leg, steps in done)
