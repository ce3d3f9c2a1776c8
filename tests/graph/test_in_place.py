"""Operations that overwrite what they are given, out of place."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hast_lightning.graph.in_place import out_of_place, overwrites, requires_copies
from hast_lightning.graph.tracing import trace
from tests.export.families import noise


class Chain(nn.Module):
    """A convolution, and something behind it."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.then = nn.Conv2d(3, 4, 3), then

    def forward(self, images: Tensor) -> Tensor:
        return self.then(self.conv(images)).mean((2, 3))


def statement(x: Tensor) -> Tensor:
    x = x.relu()
    x.add_(1)
    x.mul_(2)
    return x + x.relu_()


CHAINS: dict[str, Callable[[Tensor], Tensor]] = {
    "two layers": nn.Sequential(nn.ReLU(True), nn.ReLU6(True)),
    "two functions": lambda x: F.relu6(F.relu(x, True), inplace=True),
    "methods": lambda x: x.sigmoid_().tanh_(),
    "torch functions": lambda x: torch.relu_(torch.sigmoid_(x)).exp_(),
    "augmented": lambda x: operator.imul(operator.iadd(x.sigmoid(), 1), 2),
    "statements": statement,
    "hard": nn.Sequential(nn.ELU(inplace=True), nn.Hardswish(True), nn.LeakyReLU(inplace=True)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_are_out_of_place_and_compute_the_same(name: str) -> None:
    network = Chain(CHAINS[name]).eval()
    images = noise(2, 3, 8, 8)
    graph_module = trace(network)
    with torch.no_grad():
        expected = network(images)
    out_of_place(graph_module)
    assert not [node for node in graph_module.graph.nodes if overwrites(node, graph_module)]
    assert not requires_copies(graph_module, images)
    with torch.no_grad():
        assert torch.equal(graph_module(images), expected)


def test_what_gradients_need_is_told_from_what_they_do_not() -> None:
    images = noise(2, 3, 8, 8)
    needed = trace(Chain(nn.Sequential(nn.ReLU(True), nn.ReLU6(True))).eval())
    assert requires_copies(needed, images)
    frozen = needed.requires_grad_(False)
    assert requires_copies(frozen, images)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert not requires_copies(trace(Chain(nn.ReLU(True)).eval()), images)


class Normalizing(nn.Module):
    """Normalizes its images where they are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        images.sub_(0.5).div_(0.25)
        return self.conv(images).mean((2, 3))


def test_images_that_are_trained_are_not_overwritten() -> None:
    images = noise(2, 3, 8, 8)
    network = Normalizing().eval()
    graph_module = trace(network)
    assert requires_copies(graph_module, images)
    out_of_place(graph_module)
    kept = images.clone()
    with torch.no_grad():
        assert torch.equal(graph_module(images), network(images.clone()))
    assert torch.equal(images, kept)
