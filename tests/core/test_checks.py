"""Refusals name the key, the value and what is allowed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from hast_lightning.core.checks import expand_home, require_choice, require_range
from hast_lightning.errors import ConfigurationError


@pytest.mark.parametrize(
    ("value", "limits", "message"),
    [
        (-1, (0,), "x=-1 must be at least 0"),
        (2.5, (0, 2), "x=2.5 must be at least 0 and at most 2"),
        (math.nan, (0, 2), "x=nan must be at least 0 and at most 2"),
        (math.inf, (0,), "x=inf must be at least 0 and finite"),
    ],
)
def test_a_value_out_of_range_is_refused(
    value: float, limits: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        require_range("x", value, *limits)
    assert str(caught.value) == message


def test_ends_belong_to_a_range_unless_it_is_open() -> None:
    require_range("x", 0, 0, 1)
    require_range("x", 1, 0, 1, open_minimum=True)
    with pytest.raises(ConfigurationError, match="x=0 must be greater than 0 and at most 1"):
        require_range("x", 0, 0, 1, open_minimum=True)


def test_a_choice_that_is_none_is_refused() -> None:
    require_choice("x", "b", ("b", "a"))
    with pytest.raises(ConfigurationError, match="x='c' is not one of: a, b"):
        require_choice("x", "c", ("b", "a"))


def test_a_tilde_is_the_home_folder() -> None:
    assert expand_home("~/data") == str(Path.home() / "data")
    assert expand_home("data/~") == "data/~"
    assert expand_home(None) is None
