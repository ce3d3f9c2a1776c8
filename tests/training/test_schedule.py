"""Schedules against a step-by-step simulation, and the learning rates."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hast_lightning.config import LearningRateConfig, ScheduleConfig
from hast_lightning.training.schedule import (
    Action,
    Schedule,
    build_schedule,
    learning_rate_factor,
)

EVERYTHING = ("synthesize", "distill", "evaluate", "report")
few = settings(max_examples=60, deadline=None)
budgets = st.integers(0, 9)
schedules = st.builds(
    Schedule, st.sampled_from(["two_stage", "alternating"]), budgets, budgets, budgets
)


def simulate(schedule: Schedule) -> list[list[Action]]:
    """What each iteration does, written down as the methods tell it."""
    synthesize, distill = [Action.SYNTHESIZE], [Action.DISTILL]
    calibrate = [[Action.CALIBRATE] for _ in range(schedule.calibration_steps)]
    if calibrate:
        calibrate[-1].append(Action.FREEZE_RANGES)
    if schedule.name == "two_stage":
        return (
            [synthesize] * schedule.synthesis_steps + calibrate + [distill] * schedule.student_steps
        )
    return [synthesize + step for step in calibrate + [distill] * schedule.student_steps]


@few
@given(schedules)
def test_actions_are_those_of_the_simulation(schedule: Schedule) -> None:
    expected = simulate(schedule)
    assert schedule.iterations == len(expected)
    actual = [schedule.actions(iteration) for iteration in range(schedule.iterations)]
    assert actual == [tuple(actions) for actions in expected]


@few
@given(schedules)
def test_completed_counts_what_the_simulation_did(schedule: Schedule) -> None:
    done: Counter[Action] = Counter()
    for iteration, actions in enumerate([*simulate(schedule), []]):
        for action in Action:
            assert schedule.completed(action, iteration) == done[action], (iteration, action)
        done.update(actions)


@few
@given(schedules)
def test_progress_counts_every_stage_from_one_to_its_total(schedule: Schedule) -> None:
    expected = [
        (stage, step, total)
        for stage, total in schedule.stages.items()
        for step in range(1, total + 1)
    ]
    actual = [tuple(schedule.progress(i)) for i in range(schedule.iterations)]
    assert actual == expected
    with pytest.raises(IndexError, match=f"iteration {schedule.iterations} "):
        schedule.progress(schedule.iterations)


@few
@given(schedules)
def test_ranges_freeze_once_and_before_the_student_trains(schedule: Schedule) -> None:
    order = [action for i in range(schedule.iterations) for action in schedule.actions(i)]
    assert order.count(Action.FREEZE_RANGES) == min(1, schedule.calibration_steps)
    if schedule.calibration_steps:
        freezing = order.index(Action.FREEZE_RANGES)
        assert Action.CALIBRATE not in order[freezing:]
        assert Action.DISTILL not in order[:freezing]


def test_the_released_form_of_hast_in_its_order() -> None:
    schedule = Schedule("two_stage", 20000, 800, 29400)
    assert schedule.stages == {"synthesis": 20000, "calibration": 800, "distillation": 29400}
    assert list(schedule.stages) == ["synthesis", "calibration", "distillation"]
    assert schedule.actions(19999) == (Action.SYNTHESIZE,)
    assert schedule.actions(20000) == (Action.CALIBRATE,)
    assert schedule.actions(20799) == (Action.CALIBRATE, Action.FREEZE_RANGES)
    assert schedule.actions(20800) == (Action.DISTILL,)
    assert schedule.progress(20800) == ("distillation", 1, 29400)


def test_the_alternating_form_warms_up_and_then_does_both() -> None:
    schedule = Schedule("alternating", 0, 800, 79200)
    assert schedule.stages == {"warmup": 800, "alternating": 79200}
    assert schedule.actions(0) == (Action.SYNTHESIZE, Action.CALIBRATE)
    last = (Action.SYNTHESIZE, Action.CALIBRATE, Action.FREEZE_RANGES)
    assert schedule.actions(799) == last
    assert schedule.actions(800) == (Action.SYNTHESIZE, Action.DISTILL)


# --- from the configuration ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configured", "to_fill", "loaded", "expected"),
    [
        (None, 400, False, 400),  # as many as the bank needs
        (70, 400, False, 70),  # as many as asked for
        (70, None, False, 70),  # a generator has no natural end
        (None, 400, True, 0),  # the samples are there
        (70, 400, True, 0),
    ],
)
def test_synthesis_lasts_as_long_as_it_must(
    configured: int | None, to_fill: int | None, loaded: bool, expected: int
) -> None:
    config = ScheduleConfig("two_stage", configured, 3, 5)
    schedule = build_schedule(config, to_fill, EVERYTHING, loaded)
    assert schedule == Schedule("two_stage", expected, 3, 5)


def test_alternating_takes_its_budgets_from_the_configuration() -> None:
    schedule = build_schedule(ScheduleConfig("alternating", None, 3, 5), None, EVERYTHING, False)
    assert schedule.stages == {"warmup": 3, "alternating": 5}
    assert schedule.completed(Action.SYNTHESIZE, schedule.iterations) == 8


@pytest.mark.parametrize("name", ["two_stage", "alternating"])
def test_without_distill_only_the_synthesis_is_planned(name: str) -> None:
    config = ScheduleConfig(name, None, 3, 5)
    assert build_schedule(config, 7, ["synthesize"], False).stages == {"synthesis": 7}


# --- learning rates --------------------------------------------------------------------------


def factors(config: LearningRateConfig, total: int) -> list[float]:
    return [learning_rate_factor(config, step, total) for step in range(total)]


def test_constant_is_one() -> None:
    assert factors(LearningRateConfig("constant"), 5) == [1] * 5


def test_multistep_falls_at_every_milestone() -> None:
    config = LearningRateConfig("multistep", [2, 4], 0.1)
    assert factors(config, 6) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_multistep_without_milestones_is_constant() -> None:
    assert factors(LearningRateConfig("multistep"), 4) == [1] * 4


def test_cosine_goes_from_one_to_zero() -> None:
    config = LearningRateConfig("cosine")
    expected = [0.5 + 0.5 * math.cos(math.pi * step / 8) for step in range(8)]
    assert factors(config, 8) == pytest.approx(expected)
    assert learning_rate_factor(config, 0, 8) == 1
    assert learning_rate_factor(config, 4, 8) == pytest.approx(0.5)
    assert learning_rate_factor(config, 8, 8) == pytest.approx(0)


@pytest.mark.parametrize("policy", ["constant", "multistep", "cosine"])
def test_warm_up_is_linear_and_ends_at_the_plain_rate(policy: str) -> None:
    warm = LearningRateConfig(policy, [6], 0.1, warmup_steps=4)
    plain = factors(LearningRateConfig(policy, [6], 0.1), 10)
    ratio = [w / p for w, p in zip(factors(warm, 10), plain, strict=True)]
    assert ratio == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1])


@few
@given(
    st.sampled_from(["constant", "multistep", "cosine"]),
    st.integers(0, 50),
    st.integers(1, 100),
    st.integers(0, 20),
)
def test_the_rate_is_never_negative_nor_above_its_base(
    policy: str, step: int, total: int, warmup: int
) -> None:
    config = LearningRateConfig(policy, [10, 20], 0.5, warmup)
    assert 0 <= learning_rate_factor(config, min(step, total), total) <= 1


def test_what_is_logged_is_every_so_many_steps_and_the_end_of_every_stage() -> None:
    schedule = Schedule("two_stage", synthesis_steps=7, calibration_steps=2, student_steps=5)
    logged = [i for i in range(schedule.iterations) if schedule.is_logged(i, 5)]
    assert logged == [0, 5, 6, 8, 10, 13]
