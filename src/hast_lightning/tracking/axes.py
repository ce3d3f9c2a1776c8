"""The axis of a metric: the step counter of its own group."""

from __future__ import annotations

from collections.abc import Iterable

from hast_lightning.training.agenda import Agenda

ITERATION = "iteration"
"""Number of the iteration, from 0: the axis of what has no group of its own."""
STUDENT_AXIS = "student/step"
"""The counter of the steps that trained the student."""
OF_THE_STUDENT = ("evaluation", "quantization", "batch")
"""Groups of what training has made of the student so far, and of the batches of its steps."""
SAMPLES = "samples"
"""The group of what a source has come to, whichever stages improve it."""


def axes(agenda: Agenda) -> dict[str, str]:
    """Return the axis of every group of metrics that a run may log."""
    own = {group: f"{group}/step" for group in agenda.groups}
    return {**own, **dict.fromkeys(OF_THE_STUDENT, STUDENT_AXIS), SAMPLES: ITERATION}


def axis_of(name: str) -> str:
    """Return the name of the axis that the metric ``name``, such as ``synthesis/bns``, has."""
    group, slash, _ = name.partition("/")
    if not slash or group == SAMPLES:
        return ITERATION
    return STUDENT_AXIS if group in OF_THE_STUDENT else f"{group}/step"


def axis_values(agenda: Agenda, names: Iterable[str], iteration: int) -> dict[str, int]:
    """Return the position of ``iteration`` (from 0) on every axis that the metrics need.

    A step counter is the number of steps done when the iteration is over: its first step is 1,
    and what was measured before it is at 0.
    """
    found = {}
    for axis in {axis_of(name) for name in names}:
        group = axis.partition("/")[0]
        if axis == ITERATION:
            found[axis] = iteration
        elif axis == STUDENT_AXIS:
            found[axis] = agenda.student_steps(iteration + 1)
        else:
            found[axis] = agenda.steps_of_group(group, iteration + 1)
    return found
