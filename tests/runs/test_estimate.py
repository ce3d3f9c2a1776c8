from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from hast_lightning.runs.estimate import (
    Cost,
    Timed,
    cost_table,
    estimate,
    few_steps,
    readable_time,
    whole,
)
from tests.command_line import TINY, call, undisturbed_torch
from tests.composition import composed

PLANNED = (*TINY, "schedule.image_steps=30", "schedule.student_steps=300", "schedule.images=320")


def test_the_steps_of_the_whole_run_are_counted_and_few_are_done() -> None:
    config = composed(*PLANNED)
    small = composed(*PLANNED, *few_steps(config))
    assert small.stages["distillation"].steps == 3
    # As large a batch as planned, of as few as there can be.
    assert small.sources["bank"].size == small.sources["bank"].batch_size == 32
    console = Console(file=io.StringIO(), width=80)
    with undisturbed_torch():
        cost = estimate(config, small, console)
    assert cost.steps == {"synthesis": 10 * 30, "calibration": 2, "distillation": 300}
    assert all(seconds > 0 for seconds in cost.seconds.values())
    # The bank alone is in two checkpoints.
    assert cost.disk > 2 * 320 * 64 * 4
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for word in ("synthesis", "distillation", "300", "all", "memory", "disk"):
        assert word in shown


def test_the_command_leaves_nothing(tmp_path: Path) -> None:
    finished = call(*TINY, "command=estimate", "quantizer.bits=4", folder=tmp_path)
    assert finished.status == 0, finished
    assert "distillation" in finished.out
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_would_be_refused_is_refused(tmp_path: Path) -> None:
    words = ("command=estimate", "model=torchvision", "model.name=squeezenet1_1")
    network = (*words, "model.pretrained=false", "model.input_size=32", "data=none")
    line = call(*TINY, *network, folder=tmp_path).refusal()
    assert "BatchNorm" in line


def test_what_a_unit_prepares_once_is_not_counted_for_each_of_its_steps() -> None:
    # Two units of three steps; the first step of each prepares for 9 seconds.
    timed = [Timed(10, True), Timed(1, False), Timed(1, False)] * 2
    assert whole(timed, 2 * 400) == 800 + 2 * 9
    assert whole(timed, 6) == 24
    # Every step is a layer of its own.
    assert whole([Timed(2, True), Timed(4, True)], 10) == 30


def test_what_stages_keep_of_each_sample_is_kept_and_typed_steps_are_few_too() -> None:
    words = (*PLANNED, "method=reconstruct", "stages.reconstruction.iterations=400")
    more = ("stages.reconstruction.samples=200", "sources.bank.iterations=50", "data.holdout=0.1")
    config = composed(*words, *more, "schedule.images=960")
    small = composed(*words, *more, *few_steps(config))
    reconstruction = small.stages["reconstruction"]
    # 512 samples of the correction are more than 200; of the latter none is left out.
    assert small.sources["bank"].size == 18 * 32 >= 512 / 0.9
    assert (reconstruction.samples, reconstruction.iterations) == (200, 3)  # type: ignore[attr-defined]
    assert small.sources["bank"].iterations == 2  # type: ignore[attr-defined]


def test_units_are_told_apart_where_a_network_is_rebuilt() -> None:
    words = (*PLANNED, "method=reconstruct", "schedule.unit_steps=100")
    config = composed(*words)
    with undisturbed_torch():
        cost = estimate(config, composed(*words, *few_steps(config)), Console(file=io.StringIO()))
    assert cost.steps["reconstruction"] == 5 * 100
    assert cost.seconds["reconstruction"] > 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((3, "3 seconds"), (119, "119 seconds"), (150, "2.5 minutes")),
        *((9000, "2.5 hours"), (216000, "2.5 days")),
    ],
)
def test_times_are_told_in_the_unit_that_fits(seconds: float, text: str) -> None:
    assert readable_time(seconds) == text


def test_the_table_adds_up() -> None:
    cost = Cost({"one": 60.0, "two": 90.0}, {"one": 6, "two": 3}, None, 5000)
    cells = [list(column.cells) for column in cost_table("name", "a CPU", cost).columns]
    assert cells[0] == ["one", "two", "all", "memory", "disk"]
    assert cells[2][:2] == ["10,000 ms", "30,000 ms"]
    assert cells[3] == ["60 seconds", "90 seconds", "2.5 minutes", "not told", "5.00 KB"]
