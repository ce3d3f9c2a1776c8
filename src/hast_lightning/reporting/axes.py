"""What a metric is drawn over: the step counter of its own group."""

from __future__ import annotations

from collections.abc import Iterable

from hast_lightning.schedule import Action, Schedule

ITERATION = "iteration"
"""Number of the iteration, from 0: the axis of what has no group of its own."""
_STEPS = {
    "synthesis": Action.SYNTHESIZE,
    "calibration": Action.CALIBRATE,
    "distillation": Action.DISTILL,
}
AXES = {
    **{group: f"{group}/step" for group in _STEPS},
    # What training has made of the student so far.
    "evaluation": "distillation/step",
    "quantization": "distillation/step",
}
"""Axis of the metrics of a group, which is what is before the first slash of their names."""


def axis_of(name: str) -> str:
    """Name of the axis that the metric ``name`` is drawn over."""
    return AXES.get(name.partition("/")[0], ITERATION)


def axis_values(schedule: Schedule, names: Iterable[str], iteration: int) -> dict[str, int]:
    """The position of ``iteration`` (from 0) on every axis that the metrics ``names`` need.

    A step counter is the number of steps done when the iteration is over: its first step is 1,
    and what was measured before it is at 0.
    """
    found = {}
    for axis in {axis_of(name) for name in names}:
        action = _STEPS.get(axis.partition("/")[0])
        done = iteration if action is None else schedule.completed(action, iteration + 1)
        found[axis] = done
    return found
