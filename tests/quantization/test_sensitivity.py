from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hast_lightning.quantization.sensitivity import (
    divergence,
    fisher_diagonal,
    fisher_sensitivity,
    margin_lost,
    squared_error,
)

LOGITS = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
OTHERS = torch.tensor([[0.0, 0.0], [0.0, 2.0]])


def test_divergence_is_the_mean_over_images_of_the_divergence_from_the_float_network() -> None:
    expected = 0.0
    for before, after in zip(LOGITS.tolist(), OTHERS.tolist(), strict=True):
        p, q = ([math.exp(x) / sum(map(math.exp, row)) for x in row] for row in (before, after))
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 2
    assert float(divergence(LOGITS, OTHERS)) == pytest.approx(expected, rel=1e-6)


def test_squared_error_is_a_mean_over_images_and_classes() -> None:
    assert float(squared_error(LOGITS, OTHERS)) == pytest.approx((1 + 1) / 4)


def test_the_margin_is_between_the_own_centre_and_the_next() -> None:
    before = torch.tensor([[2.0, 0.0, -2.0], [-2.0, 0.0, 2.0]])
    after = torch.tensor([[0.0, 0.0, 0.0], [-2.0, 0.0, 2.0]])
    # Two opposite directions: a margin of 2 each; no direction has none.
    assert float(margin_lost(before, after)) == pytest.approx(1.0)
    assert float(margin_lost(before, 3 * before + 1)) == pytest.approx(0.0, abs=1e-12)


def test_classes_that_nothing_is_put_into_do_not_count() -> None:
    before = torch.tensor([[2.0, 0.0, -2.0], [1.9, 0.0, -2.1]])
    turned = before.flip(1)
    lost = float(margin_lost(before, turned))
    assert lost == pytest.approx(2.0, abs=0.01)  # from cosine 1 to -1, the margin to -1 in both


@pytest.mark.parametrize("measure", [divergence, squared_error, margin_lost])
def test_a_network_that_is_not_rounded_has_lost_nothing(measure: object) -> None:
    assert float(measure(LOGITS, LOGITS)) == 0  # type: ignore[operator]


def test_the_fisher_diagonal_of_a_linear_classifier() -> None:
    torch.manual_seed(0)
    network = nn.Linear(3, 4, bias=False)
    inputs = torch.randn(4, 3)
    chances = network(inputs).softmax(1).detach()
    # E over labels of (p_c - [y = c])^2 x_d^2 = p_c (1 - p_c) x_d^2, averaged over images.
    expected = (chances * (1 - chances)).T @ inputs.square() / 4
    batches = [inputs] * 2000
    (found,) = fisher_diagonal(network, [network.weight], batches, torch.Generator().manual_seed(1))
    assert torch.allclose(found, expected, rtol=0.05, atol=0.002)


def test_fisher_sensitivity_is_half_the_weighted_squared_error() -> None:
    fisher, weight = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -0.5])
    rounded = torch.tensor([1.0, 0.0])
    assert float(fisher_sensitivity(fisher, weight, rounded)) == pytest.approx(0.375)


def test_fisher_sensitivity_predicts_the_divergence_of_a_small_change() -> None:
    torch.manual_seed(0)
    network = nn.Linear(3, 4, bias=False)
    inputs, weight = torch.randn(16, 3), network.weight.detach()
    chances = network(inputs).softmax(1).detach()
    fisher = (chances * (1 - chances)).T @ inputs.square() / 16
    ratios = []
    for _ in range(200):
        changed = weight + 1e-3 * torch.randn_like(weight)
        exact = divergence(inputs @ weight.T, inputs @ changed.T)
        ratios.append(float(exact / fisher_sensitivity(fisher, weight, changed)))
    # Without what is off the diagonal it is right on average.
    assert sum(ratios) / len(ratios) == pytest.approx(1, abs=0.1)


def test_the_fisher_diagonal_of_a_network_that_is_sure_needs_no_rare_labels() -> None:
    network = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[5.0], [-5.0]]))
    inputs = torch.ones(64, 1)
    chance = float(network(inputs[:1]).detach().softmax(1)[0, 1])
    batches = [inputs] * 50
    (found,) = fisher_diagonal(network, [network.weight], batches, torch.Generator().manual_seed(0))
    # 3,200 draws of labels would hold another one with a chance of one in seven.
    assert 0.5 < float(found[0, 0]) / (chance * (1 - chance)) < 2


def test_the_margin_of_maps_is_that_of_their_positions() -> None:
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    others = maps.flip(3)
    rows, turned = (each.movedim(1, -1).reshape(-1, 3) for each in (maps, others))
    assert float(margin_lost(maps, others)) == pytest.approx(float(margin_lost(rows, turned)))
