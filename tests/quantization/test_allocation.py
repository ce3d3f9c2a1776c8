from __future__ import annotations

import itertools
import random

import pytest

from hast_lightning.quantization.allocation import (
    Options,
    Policy,
    allocate,
    best_by_size,
    cost_of,
    extended,
    frontier,
    predicted,
)


def drawn(seed: int, count: int = 5, *, negative: bool = False) -> list[Options]:
    """Layers of random sizes, whose losses need not fall with their bits."""
    numbers = random.Random(seed)
    layers = []
    for _ in range(count):
        size, bits = numbers.randint(1, 60), (2, 3, 4, 8)[numbers.randint(0, 1) :]
        losses = tuple(numbers.uniform(-1 if negative else 0, 4) / b for b in bits)
        layers.append(Options(bits, tuple(size * b for b in bits), losses))
    return layers


def everything(layers: list[Options]) -> list[Policy]:
    rows = itertools.product(*(layer.bits for layer in layers))
    return [Policy(row, cost_of(layers, row), predicted(layers, row)) for row in rows]


@pytest.mark.parametrize("seed", range(12))
def test_the_knapsack_finds_the_best_of_all_policies(seed: int) -> None:
    layers = drawn(seed, negative=seed % 2 == 1)
    policies = everything(layers)
    least, most = (f(policy.cost for policy in policies) for f in (min, max))
    for part in range(6):
        budget = least + (most - least) * part // 5
        best = min(policy.loss for policy in policies if policy.cost <= budget)
        found = allocate(layers, budget)
        assert found.loss == pytest.approx(best, abs=1e-9)
        assert found.cost == cost_of(layers, found.bits) <= budget


def test_a_budget_for_the_most_bits_gives_all_of_them_to_layers_that_gain_by_them() -> None:
    layers = [Options((2, 4, 8), (2 * n, 4 * n, 8 * n), (3.0, 1.0, 0.1)) for n in (5, 7, 11)]
    assert allocate(layers, 8 * 23).bits == (8, 8, 8)


def test_a_budget_below_the_fewest_bits_has_no_policy() -> None:
    layers = drawn(0)
    with pytest.raises(ValueError, match="no policy costs"):
        allocate(layers, sum(min(layer.costs) for layer in layers) - 1)


def test_sixty_layers_of_millions_of_weights_are_solved_exactly_in_no_time() -> None:
    numbers = random.Random(1)
    sizes = [numbers.randint(100, 3_000_000) for _ in range(60)]
    layers = [
        Options(
            tuple(range(2, 9)),
            tuple(n * b for b in range(2, 9)),
            tuple(numbers.random() * 4.0**-b * n for b in range(2, 9)),
        )
        for n in sizes
    ]
    found = allocate(layers, 3 * sum(sizes))
    assert 0.999 * 3 * sum(sizes) < found.cost <= 3 * sum(sizes)


def test_survivors_grow_by_every_choice_that_leaves_room() -> None:
    layer = Options((2, 4), (10, 20), (1.0, 0.25))
    grown = extended([Policy((8,), 5, 0.5)], layer, 20)
    assert grown == [Policy((8, 2), 15, 1.5)]
    assert len(extended([Policy((), 0, 0.0)], layer, 20)) == 2


def test_the_best_of_each_size_are_kept() -> None:
    policies = [
        Policy((i,), cost, loss)
        for i, (cost, loss) in enumerate([(10, 3), (11, 1), (12, 2), (40, 9)])
    ]
    kept = best_by_size(policies, 10, 2)
    assert [policy.bits for policy in kept] == [(1,), (2,), (3,)]


def test_a_frontier_has_no_policy_that_another_beats() -> None:
    policies = everything(drawn(3, 4))
    found = frontier(policies)
    for policy in policies:
        assert any(p.cost <= policy.cost and p.loss <= policy.loss for p in found)
    pairs = list(itertools.pairwise(found))
    assert all(a.cost < b.cost and a.loss > b.loss for a, b in pairs)


def test_with_as_much_room_as_there_is_the_search_is_exhaustive() -> None:
    layers = drawn(4)
    survivors = [Policy((), 0, 0.0)]
    budget = max(policy.cost for policy in everything(layers))
    for i, layer in enumerate(layers):
        room = budget - sum(min(each.costs) for each in layers[i + 1 :])
        survivors = best_by_size(extended(survivors, layer, room), 1, 10**6)
    assert sorted(each.bits for each in survivors) == sorted(p.bits for p in everything(layers))
