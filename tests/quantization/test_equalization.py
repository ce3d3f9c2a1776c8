from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.graph.tracing import fold_batch_norms, trace
from hast_lightning.quantization.channel_pairs import find_pairs
from hast_lightning.quantization.equalization import equalize, equalized
from hast_lightning.quantization.norm_factors import channel_factors, find_norm_pairs
from tests.small_runs import build_module, small

IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Separable(nn.Module):
    """Pointwise, depthwise, pointwise, and a classifier behind an average."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 6, 1)
        self.norm1 = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm2 = nn.BatchNorm2d(6)
        self.project = nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(4, 5)
        self.activation = activation()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm1(self.expand(x)))
        x = self.activation(self.norm2(self.depthwise(x)))
        return self.head(torch.flatten(self.pool(self.project(x).relu()), 1))  # type: ignore[no-any-return]


def separable(activation: type[nn.Module] = nn.ReLU) -> Separable:
    torch.manual_seed(0)
    network = Separable(activation).train()
    with torch.no_grad():
        network.expand.weight.mul_(torch.logspace(-2, 1, 6).view(-1, 1, 1, 1))
        for norm in (network.norm1, network.norm2):
            norm.weight.uniform_(0.1, 3)
            norm.bias.uniform_(-1, 1)
    for _ in range(5):
        network(IMAGES)
    return network.eval()


def pretrained(network: nn.Module) -> PretrainedNetwork:
    return PretrainedNetwork(network, "separable", (3, 8, 8), 5, (0.5,) * 3, (0.5,) * 3, "0" * 64)


def test_factors_are_the_roots_of_the_ratios_and_one_where_a_channel_is_dead() -> None:
    found = channel_factors(torch.tensor([4.0, 1.0, 0.0, 2.0]), torch.tensor([1.0, 4.0, 1.0, 0.0]))
    assert found.tolist() == [2.0, 0.5, 1.0, 1.0]


def test_what_the_network_computes_stays_and_the_network_handed_in_too() -> None:
    network = separable()
    before = copy.deepcopy(network.state_dict())
    result = equalized(pretrained(network), per_tensor=True).network
    assert torch.allclose(result(IMAGES), network(IMAGES), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(result.depthwise.weight, network.depthwise.weight)  # type: ignore[union-attr,arg-type]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_channels_are_as_wide_in_both_layers_afterwards() -> None:
    folded = fold_batch_norms(trace(equalized(pretrained(separable()), per_tensor=True).network))
    layers = [folded.get_submodule(n).weight.detach() for n in ("expand", "depthwise", "project")]  # type: ignore[union-attr,operator]
    first, depthwise, project = layers
    out = first.abs().flatten(1).amax(1)
    middle = depthwise.abs().flatten(1).amax(1)
    taken = project.abs().amax((0, 2, 3))
    assert torch.allclose(out, middle, rtol=1e-2)
    assert torch.allclose(middle, taken, rtol=1e-2)


def test_a_depthwise_triple_ends_at_the_geometric_mean_of_its_ranges() -> None:
    """In one go it is (r1 r2 r3)^(1/3); pair by pair the rounds lead there."""
    torch.manual_seed(0)
    chain = nn.Sequential(
        nn.Conv2d(1, 4, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=4, bias=False),
        nn.ReLU(),
        nn.Conv2d(4, 1, 1, bias=False),
    ).eval()

    def ranges() -> list[Tensor]:
        first, depthwise, last = (chain[i].weight.detach().abs() for i in (0, 2, 4))  # type: ignore[union-attr,operator]
        return [first.flatten(1).amax(1), depthwise.flatten(1).amax(1), last.amax((0, 2, 3))]

    expected = torch.stack(ranges()).log().mean(0).exp()
    equalize(find_pairs(trace(chain)))
    for found in ranges():
        assert torch.allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("activation", [nn.ReLU6, nn.SiLU])
def test_an_activation_that_does_not_commute_parts_two_layers(activation: type[nn.Module]) -> None:
    pairs = find_pairs(trace(separable(activation)))
    assert [(pair.first.weight.shape[0], pair.second.weight.shape[0]) for pair in pairs] == [(4, 5)]


def test_a_value_that_is_also_needed_elsewhere_parts_two_layers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x).relu()
            return self.second(y) + y  # type: ignore[no-any-return]

    network = pretrained(Residual().eval())
    with caplog.at_level("INFO"):
        assert equalized(network, per_tensor=True) is network
    assert "equalize=true changes nothing: no two layers follow each other" in caplog.text


def test_teacher_and_student_of_a_run_are_equalized_alike() -> None:
    plain = build_module(small("quantizer.per_tensor=true"))
    module = build_module(small("quantizer.equalize=true", "quantizer.per_tensor=true"))
    images = torch.randn(4, *plain.teacher.pretrained.input_shape)
    assert torch.allclose(module.teacher(images), plain.teacher(images), rtol=1e-3, atol=1e-4)
    names = dict(module.teacher.graph_module.named_parameters())
    of_plain = dict(plain.teacher.graph_module.named_parameters())
    for name, value in module.student.named_parameters():
        assert torch.equal(value, names[name]), name
    assert any(not torch.equal(value, of_plain[name]) for name, value in names.items())


def test_a_batch_norm_takes_the_factors_of_what_it_puts_out() -> None:
    network = pretrained(separable())
    result = equalized(network, per_tensor=True)
    assert torch.equal(result.network.norm1.running_mean, network.network.norm1.running_mean)  # type: ignore[union-attr,arg-type]
    assert torch.equal(result.network.expand.weight, network.network.expand.weight)  # type: ignore[union-attr,arg-type]
    assert replace(result, network=network.network) == network


class OverPlaces(nn.Module):
    """A linear layer over as many places as there are channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.over = nn.Conv1d(3, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.over(self.first(x).relu()).mean(1)  # type: ignore[no-any-return]


def test_a_linear_layer_over_places_takes_in_no_channels() -> None:
    assert find_pairs(trace(OverPlaces().eval())) == []


class Tied(nn.Module):
    """Two linear layers with the same weights, one of them behind a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.norm(x)))  # type: ignore[no-any-return]


def test_weights_that_layers_share_are_not_scaled() -> None:
    assert find_norm_pairs(trace(Tied().eval())) == []
