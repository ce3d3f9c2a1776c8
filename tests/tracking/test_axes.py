from __future__ import annotations

import pytest

from hast_lightning.tracking.axes import axis_of, axis_values
from hast_lightning.training.schedule import Schedule

TWO_STAGE = Schedule("two_stage", 6, 2, 3)
ALTERNATING = Schedule("alternating", 0, 2, 3)


@pytest.mark.parametrize(
    ("name", "axis"),
    [
        ("synthesis/bns", "synthesis/step"),
        ("distillation/alignment/layer1", "distillation/step"),
        ("evaluation/student_top1", "distillation/step"),
        ("quantization/weight_error/conv1", "distillation/step"),
        ("seconds", "iteration"),
    ],
)
def test_a_metric_is_drawn_over_the_steps_of_its_group(name: str, axis: str) -> None:
    assert axis_of(name) == axis


@pytest.mark.parametrize(
    ("schedule", "name", "iteration", "position"),
    [
        (TWO_STAGE, "synthesis/bns", 0, 1),
        (TWO_STAGE, "synthesis/bns", 5, 6),
        (TWO_STAGE, "calibration/bns", 7, 2),
        # After the calibration and before the first student step.
        (TWO_STAGE, "evaluation/agreement", 7, 0),
        (TWO_STAGE, "distillation/kd", 8, 1),
        (TWO_STAGE, "evaluation/agreement", 10, 3),
        (ALTERNATING, "synthesis/bns", 4, 5),
        (ALTERNATING, "distillation/kd", 4, 3),
        (ALTERNATING, "seconds", 4, 4),
    ],
)
def test_the_position_is_the_number_of_steps_done(
    schedule: Schedule, name: str, iteration: int, position: int
) -> None:
    assert axis_values(schedule, [name], iteration) == {axis_of(name): position}
