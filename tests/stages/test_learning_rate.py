"""The student's learning rate over the steps of its stage."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hast_lightning.errors import ConfigurationError
from hast_lightning.stages.learning_rate import POLICIES, LearningRate

few = settings(max_examples=60, deadline=None)


def multiples(rate: LearningRate, total: int) -> list[float]:
    return [rate.multiple(step, total) for step in range(total)]


def test_constant_is_one() -> None:
    assert multiples(LearningRate("constant"), 5) == [1] * 5


def test_multistep_falls_at_every_milestone() -> None:
    rate = LearningRate("multistep", [2, 4], 0.1)
    assert multiples(rate, 6) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert multiples(LearningRate("multistep"), 4) == [1] * 4


def test_cosine_goes_from_one_to_zero() -> None:
    rate = LearningRate("cosine")
    expected = [0.5 + 0.5 * math.cos(math.pi * step / 8) for step in range(8)]
    assert multiples(rate, 8) == pytest.approx(expected)
    assert rate.multiple(0, 8) == 1
    assert rate.multiple(8, 8) == pytest.approx(0)


@pytest.mark.parametrize("policy", POLICIES)
def test_warm_up_is_linear_and_ends_at_the_plain_rate(policy: str) -> None:
    warm = LearningRate(policy, [6], 0.1, warmup_steps=4)
    plain = multiples(LearningRate(policy, [6], 0.1), 10)
    ratio = [w / p for w, p in zip(multiples(warm, 10), plain, strict=True)]
    assert ratio == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1])


@few
@given(st.sampled_from(POLICIES), st.integers(0, 50), st.integers(1, 100), st.integers(0, 20))
def test_the_rate_is_never_negative_nor_above_its_base(
    policy: str, step: int, total: int, warmup: int
) -> None:
    rate = LearningRate(policy, [10, 20], 0.5, warmup)
    assert 0 <= rate.multiple(min(step, total), total) <= 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"policy": "linear"}, "policy='linear' is not one of: constant, cosine, multistep"),
        ({"factor": 0.0}, "factor=0.0 must be greater than 0 and at most 1"),
        ({"warmup_steps": -1}, "warmup_steps=-1 must be at least 0"),
        ({"milestones": [3, 3]}, r"milestones=\[3, 3\] must increase"),
        ({"milestones": [-1]}, "milestones=-1 must be at least 0"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        LearningRate(**values)
