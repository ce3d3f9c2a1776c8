"""Factors in front of depthwise layers: what they take in is as wide in all channels."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.graph.tracing import trace
from hast_lightning.quantization.convert import convert
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
ACTIVATIONS = [nn.ReLU, nn.Identity]


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


def widened(network: nn.Module) -> nn.Module:
    return equalized(pretrained(network), per_tensor=False).network


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_network_answers_as_before_and_the_one_handed_in_stays(
    activation: type[nn.Module],
) -> None:
    network = inverted(activation)
    before = copy.deepcopy(network.state_dict())
    found = widened(network)
    torch.testing.assert_close(found(IMAGES), network(IMAGES), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_channels_are_as_wide_as_the_widest_afterwards(activation: type[nn.Module]) -> None:
    network = inverted(activation)
    (before,) = find_depthwise_pairs(trace(network))
    widest = input_widths(before).amax()
    graph = trace(widened(network))
    (pair,) = find_depthwise_pairs(graph)
    torch.testing.assert_close(input_widths(pair), widest.expand(6))


@pytest.mark.parametrize(
    ("activation", "expected"),
    [(nn.ReLU, [9, 0, 4]), (nn.Identity, [9, 6, 4])],
)
def test_widths_are_by_the_batch_norm(activation: type[nn.Module], expected: list[float]) -> None:
    norm = nn.BatchNorm2d(3)
    layers = (nn.Conv2d(1, 3, 1), norm, activation(), nn.Conv2d(3, 3, 3, groups=3))
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([-2.0, 1.0, 1.0]))
        norm.bias.copy_(torch.tensor([3.0, -3.0, 1.0]))
    graph = trace(nn.Sequential(*layers).eval())
    (pair,) = find_depthwise_pairs(graph)
    assert input_widths(pair).tolist() == expected


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


def test_what_ends_at_six_stays(caplog: pytest.LogCaptureFixture) -> None:
    """EfficientNet-Lite0 is worse with it (experiments/reconstruction): its channels are alike."""
    network = inverted(nn.ReLU6)
    with caplog.at_level("INFO"):
        assert widened(network) is network
    assert "equalize=true changes nothing" in caplog.text


def test_layers_that_share_weights_stay() -> None:
    network = inverted()
    network.norm2.register_parameter("again", network.depthwise.weight)
    assert widened(network) is network


def test_a_network_without_depthwise_layers_stays_and_a_line_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    with caplog.at_level("INFO"):
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


def test_every_file_answers_as_the_student(tmp_path: Path) -> None:
    student = convert(widened(inverted()), QuantizerConfig(None, 4, 4))
    recalibrate(student, [IMAGES])
    assert_every_file_answers(student, IMAGES, tmp_path, num_classes=5)
