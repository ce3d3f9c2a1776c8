from __future__ import annotations

import pytest
from torch.utils.data import DataLoader

from hast_lightning.data.ticker import StepTicker


def test_ticks_each_step_once_and_begins_anew_at_every_iteration() -> None:
    ticker = StepTicker(3, 7)
    assert list(ticker) == [3, 4, 5, 6]
    assert list(ticker) == [3, 4, 5, 6]


def test_a_loader_passes_the_steps_on_as_integers() -> None:
    steps = list(DataLoader(StepTicker(0, 3), batch_size=None))
    assert steps == [0, 1, 2]
    assert all(type(step) is int for step in steps)


def test_nothing_is_left_to_do_at_the_last_step() -> None:
    assert list(StepTicker(5, 5)) == []


def test_has_no_length_since_lightning_warns_of_iterable_datasets_that_have_one() -> None:
    with pytest.raises(TypeError):
        len(StepTicker(0, 3))


def test_refuses_a_start_behind_the_stop() -> None:
    with pytest.raises(ValueError, match="start=4 lies behind stop=3"):
        StepTicker(4, 3)
