"""Factors in front of depthwise layers: what they take in is as wide in all channels."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.graph.tracing import trace
from hast_lightning.graph.units import find_units
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.correction import told_means
from hast_lightning.quantization.depthwise_factors import (
    NARROWEST,
    find_depthwise_pairs,
    input_widths,
)
from hast_lightning.quantization.equalization import equalized
from hast_lightning.quantization.fake_quant import recalibrate
from hast_lightning.quantization.settings import QuantizerConfig
from tests.every_file import assert_every_file_answers

IMAGES = 3 * torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
ACTIVATIONS = [nn.ReLU, nn.ReLU6, nn.Identity]


class Inverted(nn.Module):
    """An inverted residual: pointwise, depthwise of two channels each, pointwise; a classifier."""

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 6, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 12, 3, padding=1, groups=6, bias=False)
        self.norm2 = nn.BatchNorm2d(12)
        self.project = nn.Conv2d(12, 4, 1)
        self.head = nn.Linear(4, 5)
        self.first, self.second = activation(), activation()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.norm1(self.expand(x)))
        x = self.second(self.norm2(self.depthwise(x)))
        return self.head(self.project(x).mean((2, 3)))  # type: ignore[no-any-return]


def inverted(activation: type[nn.Module] = nn.ReLU) -> Inverted:
    torch.manual_seed(0)
    network = Inverted(activation).train()
    with torch.no_grad():
        for norm in (network.norm1, network.norm2):
            norm.weight.copy_(torch.logspace(-0.3, 0.4, norm.num_features))
            norm.bias.uniform_(-0.5, 1)
        network(IMAGES)
    return network.eval()


def pretrained(network: nn.Module) -> PretrainedNetwork:
    return PretrainedNetwork(network, "inverted", (3, 8, 8), 5, (0.5,) * 3, (0.5,) * 3, "0" * 64)


def widened(network: nn.Module, *, parts_relu6: bool = True) -> nn.Module:
    return equalized(pretrained(network), per_tensor=False, parts_relu6=parts_relu6).network


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_network_answers_as_before_and_the_one_handed_in_stays(
    activation: type[nn.Module],
) -> None:
    network = inverted(activation)
    before = copy.deepcopy(network.state_dict())
    if activation is nn.ReLU6:
        assert network.norm1(network.expand(IMAGES)).amax() > 6
    found = widened(network)
    torch.testing.assert_close(found(IMAGES), network(IMAGES), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Identity])
def test_channels_are_as_wide_as_the_widest_afterwards(activation: type[nn.Module]) -> None:
    network = inverted(activation)
    (before,) = find_depthwise_pairs(trace(network), through_relu6=True)
    widest = input_widths(before, trace(network)).amax()
    graph = trace(widened(network))
    (pair,) = find_depthwise_pairs(graph, through_relu6=True)
    torch.testing.assert_close(input_widths(pair, graph), widest.expand(6))


@pytest.mark.parametrize(
    ("activation", "expected"),
    [(nn.ReLU, [9, 0, 4]), (nn.ReLU6, [6, 0, 4]), (nn.Identity, [9, 6, 4])],
)
def test_widths_are_by_the_batch_norm_and_end_where_the_activation_does(
    activation: type[nn.Module], expected: list[float]
) -> None:
    norm = nn.BatchNorm2d(3)
    layers = (nn.Conv2d(1, 3, 1), norm, activation(), nn.Conv2d(3, 3, 3, groups=3))
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([-2.0, 1.0, 1.0]))
        norm.bias.copy_(torch.tensor([3.0, -3.0, 1.0]))
    graph = trace(nn.Sequential(*layers).eval())
    (pair,) = find_depthwise_pairs(graph, through_relu6=True)
    assert input_widths(pair, graph).tolist() == expected


def test_a_channel_that_hardly_fires_grows_tenfold_at_most() -> None:
    network = inverted()
    with torch.no_grad():
        network.norm1.bias[0] = -10
    found = widened(network)
    factors = found.norm1.bias / network.norm1.bias  # type: ignore[union-attr,operator]
    assert factors[0].item() == pytest.approx(1 / NARROWEST)
    torch.testing.assert_close(found(IMAGES), network(IMAGES), rtol=1e-4, atol=1e-5)


def test_other_layers_and_statistics_stay() -> None:
    network = inverted()
    found = widened(network).state_dict()
    changed = {name for name, value in network.state_dict().items() if not found[name].equal(value)}
    assert changed == {"norm1.weight", "norm1.bias", "depthwise.weight"}


def test_a_relu6_becomes_two_operations_unless_it_is_to_stay() -> None:
    network = inverted(nn.ReLU6)
    assert [n.target for n in trace(widened(network)).graph.nodes].count(torch.minimum) == 1
    # The only pair has a ReLU6 between, so that nothing is left to scale.
    assert widened(network, parts_relu6=False) is network


class Called(Inverted):
    """ReLU6 as a function, and once more behind a value without its last dimension but one."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm1(self.expand(x)), inplace=True)
        x = self.first(self.norm2(self.depthwise(x)))
        return self.head(self.first(self.project(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Flattened(nn.Module):
    """A convolution of two dimensions, a ReLU6 of flat values, a depthwise one of one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.activation, self.depthwise = nn.ReLU6(), nn.Conv1d(4, 4, 3, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.expand(x)).flatten(2))
        return self.depthwise(F.pad(x, (0, 1)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [Called, Flattened])
def test_a_relu6_may_be_a_function_and_see_other_shapes(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network = kind(nn.ReLU6) if kind is Called else kind()
    norm = network.get_submodule("norm1" if kind is Called else "norm")
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(1, 4, norm.num_features))  # type: ignore[operator,union-attr,arg-type]
    found = widened(network.eval())
    assert found is not network
    for images in (IMAGES[:1], IMAGES[:4]):
        torch.testing.assert_close(found(images), network(images), rtol=1e-4, atol=1e-5)


def test_units_names_and_what_batch_norms_tell_stay() -> None:
    network = trace(inverted(nn.ReLU6))
    found = trace(widened(network))
    assert find_units(found) == find_units(network)
    assert [type(found.get_submodule(name)) for name in ("first", "second")] == [nn.ReLU, nn.ReLU6]
    before, after = told_means(network), told_means(found)
    factors = network.norm1.weight / found.norm1.weight  # type: ignore[operator,union-attr]
    torch.testing.assert_close(after["first"] * factors.double(), before["first"])
    torch.testing.assert_close(after["second"], before["second"])


def test_layers_that_share_weights_stay() -> None:
    network = inverted()
    network.norm2.register_parameter("again", network.depthwise.weight)
    assert widened(network) is network


def test_a_network_without_depthwise_layers_stays_and_a_line_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    assert widened(network.eval()) is network
    assert "equalize=true changes nothing: no depthwise layer follows" in caplog.text


def test_few_bits_of_activations_lose_less() -> None:
    """The reason for it: a range that all channels share wastes no levels on narrow ones."""

    def depthwise_outputs(network: nn.Module) -> Tensor:
        found: list[Tensor] = []
        norm = network.get_submodule("norm2")
        handle = norm.register_forward_pre_hook(lambda _, given: found.append(given[0]))
        with torch.no_grad():
            network(IMAGES)
        handle.remove()
        return found[0].transpose(0, 1).flatten(1)

    def error(network: nn.Module) -> float:
        student = convert(network, QuantizerConfig(None, 8, 4))
        recalibrate(student, [IMAGES])
        expected = depthwise_outputs(inverted())
        errors = (depthwise_outputs(student) - expected).square().mean(1) / expected.var(1)
        return float(errors.mean())

    assert error(widened(inverted())) < 0.5 * error(inverted())


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6])
def test_every_file_answers_as_the_student(activation: type[nn.Module], tmp_path: Path) -> None:
    student = convert(widened(inverted(activation)), QuantizerConfig(None, 4, 4))
    recalibrate(student, [IMAGES])
    assert_every_file_answers(student, IMAGES, tmp_path, num_classes=5)
