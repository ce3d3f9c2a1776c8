"""A network of the same architecture that was never trained."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hast_lightning.errors import ModelError
from hast_lightning.graph.afresh import drawn_afresh
from hast_lightning.models import zoo
from tests.small_calls import digits_network
from tests.small_runs import small


def trained() -> nn.Module:
    return zoo.load(small().model).network


def test_every_weight_is_another_and_batch_norms_have_seen_nothing() -> None:
    network = trained()
    before = copy.deepcopy(network.state_dict())
    new = drawn_afresh(network, 0)
    own = new.state_dict()
    assert own.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    for name, value in own.items():
        assert not torch.equal(value, before[name]) or name.endswith("num_batches_tracked")
        if name.endswith("running_mean"):
            assert not value.any()
        if name.endswith("running_var"):
            assert bool((value == 1).all())
    assert all(parameter.requires_grad for parameter in new.parameters())
    assert not any(module.training for module in new.modules())


def test_the_weights_depend_on_the_seed_and_the_architecture_alone() -> None:
    torch.manual_seed(5)
    first = drawn_afresh(trained(), 3).state_dict()
    torch.manual_seed(6)
    other = digits_network()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    again, else_seeded = drawn_afresh(other, 3).state_dict(), drawn_afresh(other, 4).state_dict()
    for name, value in first.items():
        assert torch.equal(value, again[name])
        constant = "bn" in name or "downsample.1" in name
        assert torch.equal(value, else_seeded[name]) == constant, name


def test_they_are_those_that_pytorch_draws() -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))

    torch.manual_seed(9)
    expected = network().state_dict()
    torch.manual_seed(1)
    found = drawn_afresh(network(), 9).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_the_random_stream_is_left_alone() -> None:
    torch.manual_seed(0)
    network, state = trained(), torch.random.get_rng_state()
    drawn_afresh(network, 1)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_parameter_that_no_layer_draws_is_refused_by_name() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.factor = nn.Linear(4, 2), nn.Parameter(torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.factor * self.layer(x)

    with pytest.raises(ModelError, match=r"^the network's parameter factor belongs to no layer"):
        drawn_afresh(Scaled(), 0)
