"""Bits for each layer under a budget: an exact knapsack, and ZeroQ's search for a frontier."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BISECTIONS = 60
ROUNDING = 1e-9
"""Relative error of sums of losses, within which no choice is ruled out."""


class Options(NamedTuple):
    """What one layer may get.

    Attributes:
        bits: Widths, ascending.
        costs: What each takes of the budget.
        losses: What each costs in accuracy; none has to be positive.
    """

    bits: tuple[int, ...]
    costs: tuple[int, ...]
    losses: tuple[float, ...]


class Policy(NamedTuple):
    """Bits of the first layers, or of all.

    Attributes:
        bits: One for each layer, in order.
        cost: What they take of the budget.
        loss: Predicted or measured.
    """

    bits: tuple[int, ...]
    cost: int
    loss: float


def allocate(layers: Sequence[Options], budget: int) -> Policy:
    """Return the policy of least total loss within the budget, exactly.

    A dynamic programme over the layers that keeps each pair of cost and loss that no other is
    better than in both, and forgets those whose Lagrangian bound is above the loss of a policy
    that is known already.

    Raises:
        ValueError: the least bits of all layers cost more than the budget.
    """
    if sum(min(layer.costs) for layer in layers) > budget:
        raise ValueError(f"no policy costs {budget} or less")
    multiplier, known = _relaxed(layers, budget)
    limit = known.loss + ROUNDING * (1 + abs(known.loss) + multiplier * budget)
    costs, losses = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.float64)
    chosen: list[Tensor] = []
    for i, layer in enumerate(layers):
        grown = (costs[:, None] + torch.tensor(layer.costs)).flatten()
        losses = (losses[:, None] + torch.tensor(layer.losses, dtype=torch.float64)).flatten()
        behind = layers[i + 1 :]
        # Of what follows: the least cost, and the least of loss and priced cost together.
        room = budget - sum(min(each.costs) for each in behind)
        rest = sum(min(_priced(each, multiplier)) for each in behind)
        bound = losses + rest + multiplier * (grown - budget).double()
        possible = (grown <= room) & (bound <= limit)
        kept = possible.nonzero().squeeze(1)
        kept = kept[_undominated(grown[kept], losses[kept])]
        costs, losses = grown[kept], losses[kept]
        chosen.append(kept)
    place = int(losses.argmin())
    cost, bits = int(costs[place]), list[int]()
    for layer, kept in zip(reversed(layers), reversed(chosen), strict=True):
        place, choice = divmod(int(kept[place]), len(layer.bits))
        bits.insert(0, layer.bits[choice])
    return Policy(tuple(bits), cost, predicted(layers, bits))


def predicted(layers: Sequence[Options], bits: Sequence[int]) -> float:
    """Return the sum of the layers' losses at some bits."""
    return sum(layer.losses[layer.bits.index(b)] for layer, b in zip(layers, bits, strict=True))


def cost_of(layers: Sequence[Options], bits: Sequence[int]) -> int:
    """Return the sum of the layers' costs at some bits."""
    return sum(layer.costs[layer.bits.index(b)] for layer, b in zip(layers, bits, strict=True))


def _priced(layer: Options, multiplier: float) -> list[float]:
    return [v + multiplier * c for c, v in zip(layer.costs, layer.losses, strict=True)]


def _undominated(costs: Tensor, losses: Tensor) -> Tensor:
    """Return the places of pairs that none is better than, by ascending cost."""
    order = losses.argsort(stable=True)
    order = order[costs[order].argsort(stable=True)]
    ascending = losses[order]
    best = ascending.cummin(dim=0).values
    better = torch.ones_like(ascending, dtype=torch.bool)
    better[1:] = ascending[1:] < best[:-1]
    return order[better]


def _relaxed(layers: Sequence[Options], budget: int) -> tuple[float, Policy]:
    """Return a price of cost, and the policy within the budget that it leads to."""
    best = _cheapest_at(layers, 0.0)
    if best.cost <= budget:
        return 0.0, best
    low, high = 0.0, 1e-12
    while (best := _cheapest_at(layers, high)).cost > budget:
        low, high = high, 4 * high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        found = _cheapest_at(layers, middle)
        if found.cost > budget:
            low = middle
        else:
            high, best = middle, min(best, found, key=lambda each: each.loss)
    return high, best


def _cheapest_at(layers: Sequence[Options], multiplier: float) -> Policy:
    """Return the policy of least priced loss; of two the cheaper one."""
    bits = [
        min(zip(_priced(layer, multiplier), layer.costs, layer.bits, strict=True))[2]
        for layer in layers
    ]
    return Policy(tuple(bits), cost_of(layers, bits), predicted(layers, bits))


# -- ZeroQ's search (Cai et al., CVPR 2020, appendix A) -------------------------------------------


def extended(survivors: Iterable[Policy], layer: Options, room: int) -> list[Policy]:
    """Return every survivor with every choice for the next layer that leaves enough room.

    Args:
        survivors: Policies of the layers before it.
        layer: The next layer.
        room: Most that the layers up to this one may cost together.
    """
    return [
        Policy((*policy.bits, bits), policy.cost + cost, policy.loss + loss)
        for policy in survivors
        for bits, cost, loss in zip(*layer, strict=True)
        if policy.cost + cost <= room
    ]


def best_by_size(policies: Iterable[Policy], width: float, keep: int) -> list[Policy]:
    """Return the ``keep`` policies of least loss of each bin of costs, by ascending loss.

    Args:
        policies: In any order.
        width: Of a bin; a policy is in the bin ``round(cost / width)``.
        keep: Policies of a bin.
    """
    bins: dict[int, int] = defaultdict(int)
    kept = []
    for policy in sorted(policies, key=lambda each: (each.loss, each.cost)):
        place = round(policy.cost / width)
        if bins[place] < keep:
            bins[place] += 1
            kept.append(policy)
    return kept


def frontier(policies: Iterable[Policy]) -> list[Policy]:
    """Return the policies that no other beats in cost and loss, by ascending cost."""
    found: list[Policy] = []
    for policy in sorted(policies, key=lambda each: (each.cost, each.loss)):
        if not found or policy.loss < found[-1].loss:
            found.append(policy)
    return found
