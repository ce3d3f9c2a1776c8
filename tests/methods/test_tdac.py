"""Timesteps by density and variety: each quantity against a plain loop, and its pitfalls."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hast_lightning.core.source import Site
from hast_lightning.errors import ConfigurationError
from hast_lightning.methods.tdac import (
    DensityAndVariety,
    Pairs,
    allocate,
    density,
    quantile_radius,
    step_weights,
    variety,
)
from tests.diffusion import loaded


def test_distances_and_cosines_are_those_of_plain_loops() -> None:
    features = torch.randn(4, 3, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    pairs = Pairs.of(features)
    for i in range(4):
        for j in range(4):
            f, g = features[i], features[j]
            assert float(pairs.distance[i, j]) == pytest.approx(
                float((f - g).square().mean()), 1e-5
            )
            unlike = (1 - torch.cosine_similarity(f, g, dim=1)).sum()
            assert float(pairs.unlikeness[i, j]) == pytest.approx(float(unlike), abs=1e-4)


def test_density_counts_others_within_the_radius_and_variety_adds_up() -> None:
    distance = torch.tensor([[0.0, 1.0, 3.0], [1.0, 0.0, 1.5], [3.0, 1.5, 0.0]])
    assert density(distance, 1.0).tolist() == [1, 1, 0]
    assert density(distance, 1.5).tolist() == [1, 2, 1]
    assert variety(distance).tolist() == [4.0, 2.5, 4.5]
    assert quantile_radius(distance, 0.5) == 1.5


def test_weights_add_density_and_variety_from_0_to_1() -> None:
    found = step_weights(torch.tensor([2.0, 4.0, 3.0]), torch.tensor([5.0, 1.0, 3.0]), 1.2)
    assert found.tolist() == pytest.approx([1.2, 1.0, 1.1])


def test_like_features_at_all_steps_fall_back_to_uniform() -> None:
    pairs = Pairs.of(torch.ones(4, 2, 3, 2, 2))
    found = step_weights(density(pairs.distance, 0.0), variety(pairs.unlikeness), 1.2)
    assert found.tolist() == [1, 1, 1, 1]
    assert allocate(found, 10).sum() == 10


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=40), st.integers(1, 300))
def test_points_always_add_up(weights: list[float], total: int) -> None:
    if sum(weights) < 1e-3:
        return
    counts = allocate(torch.tensor(weights, dtype=torch.float64), total)
    assert int(counts.sum()) == total and (counts >= 0).all()


def test_a_shortage_goes_to_the_largest_and_a_surplus_comes_from_the_last() -> None:
    # 1/3 of 10 each is 3, 3, 3: one is missing.
    assert allocate(torch.tensor([1.0, 1.0, 1.0]), 10).tolist() == [4, 3, 3]
    # 1.5 each of 6 rounds to 2, 2, 2, 2: two too many, of the last step.
    assert allocate(torch.ones(4), 6).tolist() == [2, 2, 2, 0]


def test_the_source_gives_as_many_points_as_are_wanted_at_the_chosen_steps() -> None:
    torch.manual_seed(0)
    source = DensityAndVariety(samples=20, steps=4, compared_runs=2, held_out_samples=3)
    source.build(Site(loaded(), key="sources.points"))
    counts = source.chosen_steps(loaded(), torch.device("cpu"))
    assert int(counts.sum()) == 20
    times = source.collect(20).inputs[:, -1, 0, 0]
    visited = source.sampler.times.tolist()
    assert [int((times == t).sum()) for t in visited] == counts.tolist()


def test_the_value_that_steps_are_compared_by_can_be_named() -> None:
    source = DensityAndVariety(steps=4)
    source.build(Site(loaded(), key="sources.points"))
    assert source._compared == "network_shrink"  # what the middle block takes in
    named = DensityAndVariety(steps=4, node="network_stem")
    named.build(Site(loaded(), key="sources.points"))
    assert named._compared == "network_stem"
    wrong = DensityAndVariety(steps=4, node="middle")
    with pytest.raises(ConfigurationError, match=r"sources\.points\.node=middle: .* no node"):
        wrong.build(Site(loaded(), key="sources.points"))


def test_a_network_without_timesteps_is_refused() -> None:
    classifier = dataclasses.replace(loaded(), modality="pictures")
    with pytest.raises(ConfigurationError, match="takes pictures; choose another source"):
        DensityAndVariety(steps=4).build(Site(classifier, key="sources.points"))
