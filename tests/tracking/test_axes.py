from __future__ import annotations

import pytest

from hast_lightning.tracking.axes import axes, axis_of, axis_values
from hast_lightning.training.agenda import Agenda, Leg

TWO_STAGE = Agenda(
    (
        Leg("synthesis", 6, ("synthesis",)),
        Leg("calibration", 2, ("calibration",), calibrates=True),
        Leg("distillation", 3, ("distillation",), trains_student=True),
    )
)
ALTERNATING = Agenda(
    (
        Leg("calibration", 2, ("calibration",), calibrates=True),
        Leg("alternation", 3, ("synthesis", "distillation"), trains_student=True),
        Leg("tuning", 4, ("distillation",), trains_student=True),
    )
)


@pytest.mark.parametrize(
    ("name", "axis"),
    [
        ("synthesis/bns", "synthesis/step"),
        ("distillation/alignment/layer1", "distillation/step"),
        ("warmup/bns", "warmup/step"),
        ("evaluation/student_top1", "student/step"),
        ("quantization/weight_error/conv1", "student/step"),
        ("batch/difficulty/student", "student/step"),
        ("samples/images", "iteration"),
        ("seconds", "iteration"),
    ],
)
def test_a_metric_is_drawn_over_the_steps_of_its_group(name: str, axis: str) -> None:
    assert axis_of(name) == axis


@pytest.mark.parametrize(
    ("agenda", "name", "iteration", "position"),
    [
        (TWO_STAGE, "synthesis/bns", 0, 1),
        (TWO_STAGE, "synthesis/bns", 5, 6),
        (TWO_STAGE, "calibration/bns", 7, 2),
        # After the calibration and before the first student step.
        (TWO_STAGE, "evaluation/agreement", 7, 0),
        (TWO_STAGE, "distillation/kd", 8, 1),
        (TWO_STAGE, "evaluation/agreement", 10, 3),
        (ALTERNATING, "synthesis/bns", 4, 3),
        (ALTERNATING, "distillation/kd", 4, 3),
        # Two stages that log one group go on counting.
        (ALTERNATING, "distillation/kd", 5, 4),
        (ALTERNATING, "evaluation/agreement", 8, 7),
        (ALTERNATING, "synthesis/bns", 8, 3),
        (ALTERNATING, "samples/images", 4, 4),
        (ALTERNATING, "seconds", 4, 4),
    ],
)
def test_the_position_is_the_number_of_steps_done(
    agenda: Agenda, name: str, iteration: int, position: int
) -> None:
    assert axis_values(agenda, [name], iteration) == {axis_of(name): position}


def test_every_group_of_a_run_has_its_axis() -> None:
    assert axes(ALTERNATING) == {
        "calibration": "calibration/step",
        "synthesis": "synthesis/step",
        "distillation": "distillation/step",
        "evaluation": "student/step",
        "quantization": "student/step",
        "batch": "student/step",
        "samples": "iteration",
    }
