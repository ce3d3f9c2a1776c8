"""The agenda against a list of what every iteration is."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hast_lightning.training.agenda import Agenda, Leg

few = settings(max_examples=60, deadline=None)
SYNTHESIS = {"groups": ("synthesis",), "improves": ("bank",)}
CALIBRATION = {"groups": ("calibration",), "improves": ("generator",), "calibrates": True}
DISTILLATION = {"groups": ("distillation",), "trains_student": True}
ALTERNATION = {
    "groups": ("synthesis", "distillation"),
    "improves": ("generator",),
    "trains_student": True,
}
KINDS = (SYNTHESIS, CALIBRATION, DISTILLATION, ALTERNATION)


@st.composite
def agendas(draw: st.DrawFn) -> Agenda:
    chosen = draw(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 6)), max_size=5))
    return Agenda(tuple(Leg(f"stage{i}", n, **kind) for i, (kind, n) in enumerate(chosen)))


def simulate(agenda: Agenda) -> list[tuple[Leg, int]]:
    """Return the leg of each iteration and the step in it, from 1."""
    return [(leg, step) for leg in agenda.legs for step in range(1, leg.total + 1)]


@few
@given(agendas())
def test_progress_counts_every_stage_from_one_to_its_total(agenda: Agenda) -> None:
    expected = [(leg.stage, step, leg.total) for leg, step in simulate(agenda)]
    assert agenda.iterations == len(expected)
    assert [tuple(agenda.progress(i)) for i in range(agenda.iterations)] == expected
    with pytest.raises(IndexError, match=f"iteration {agenda.iterations} "):
        agenda.progress(agenda.iterations)


@few
@given(agendas())
def test_what_is_done_is_what_the_iterations_did(agenda: Agenda) -> None:
    for iterations in range(agenda.iterations + 2):
        done = [leg for leg, _ in simulate(agenda)][:iterations]
        counts = Counter(leg.stage for leg in done)
        assert agenda.steps(iterations) == {leg.stage: counts[leg.stage] for leg in agenda.legs}
        assert agenda.student_steps(iterations) == sum(leg.trains_student for leg in done)
        for source in ("bank", "generator"):
            improved = sum(source in leg.improves for leg in done)
            assert agenda.synthesis_steps(source, iterations) == improved
        for group in ("synthesis", "calibration", "distillation"):
            logged = sum(group in leg.groups for leg in done)
            assert agenda.steps_of_group(group, iterations) == logged


@few
@given(agendas())
def test_the_student_is_calibrated_when_a_stage_that_does_it_has_ended(agenda: Agenda) -> None:
    for iterations in range(agenda.iterations + 1):
        ended = any(
            leg.calibrates and step == leg.total for leg, step in simulate(agenda)[:iterations]
        )
        nothing = not any(leg.calibrates for leg in agenda.legs)
        assert agenda.calibrated(iterations) == (ended or nothing)


def test_stages_without_steps_are_left_out() -> None:
    class Planned:
        calibrates = trains_student = changes_bits = False
        improves = ()
        student_steps = None

        def __init__(self, steps: int) -> None:
            self.all_terms = {"any": {}}
            self.length = lambda bench: steps

    stages = {name: Planned(steps) for name, steps in (("a", 2), ("b", 0), ("c", 1))}
    agenda = Agenda.of(stages, None)  # type: ignore[arg-type]
    assert agenda.stages == {"a": 2, "c": 1}
    assert agenda.groups == ("any",)


@pytest.mark.parametrize("calibrated", [True, False])
def test_other_bits_begin_anew_where_ranges_were_found_before(calibrated: bool) -> None:
    class Planned:
        trains_student, improves, student_steps = False, (), None

        def __init__(self, *, calibrates: bool = False, changes_bits: bool = False) -> None:
            self.calibrates, self.changes_bits = calibrates, changes_bits
            self.all_terms = {}
            self.length = lambda bench: 1

    calibration, search = Planned(calibrates=True), Planned(changes_bits=True)
    order = {"calibration": calibration, "search": search}
    stages = order if calibrated else dict(reversed(order.items()))
    agenda = Agenda.of(stages, None)  # type: ignore[arg-type]
    assert agenda.leg("calibration").begins_anew
    assert agenda.leg("search").begins_anew == calibrated


def test_what_is_logged_is_every_so_many_steps_and_the_end_of_every_stage() -> None:
    agenda = Agenda((Leg("synthesis", 7), Leg("calibration", 2), Leg("distillation", 5)))
    logged = [i for i in range(agenda.iterations) if agenda.is_logged(i, 5)]
    assert logged == [0, 5, 6, 8, 10, 13]
