"""Networks that put out probabilities: found, cut where their logits are, and put together."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hast_lightning.graph.heads import (
    HEADS,
    cut_head,
    head_of,
    logits_of,
    probabilities_of,
    restore_head,
)
from hast_lightning.graph.tracing import trace
from tests.export.families import noise

SHAPE = (3, 8, 8)


class Headed(nn.Module):
    """A network of five classes with something behind its logits."""

    def __init__(self, head: Callable[[Tensor], Tensor], strength: float = 30.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.head, self.strength = head, strength

    def logits(self, images: Tensor) -> Tensor:
        return self.linear(self.conv(images).relu().mean((2, 3)) * self.strength)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.logits(images))


def by_hand(logits: Tensor) -> Tensor:
    raised = (logits - logits.amax(1, keepdim=True)).exp()
    return raised / raised.sum(1, keepdim=True)


SPELLINGS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "layer": (nn.Softmax(1), "softmax"),
    "layer without a dimension": (nn.Softmax(-1), "softmax"),
    "function": (lambda x: F.softmax(x, -1), "softmax"),
    "method": (lambda x: x.softmax(dim=1), "softmax"),
    "with a temperature": (lambda x: torch.softmax(x / 3, 1), "softmax"),
    "by hand": (by_hand, "softmax"),
    "maps": (lambda x: nn.Softmax(1)(x[:, :, None, None]).flatten(1), "softmax"),
    "log-softmax": (nn.LogSoftmax(1), "log_softmax"),
    "log of softmax": (lambda x: x.softmax(1).log(), "log_softmax"),
    "sigmoid": (nn.Sigmoid(), "sigmoid"),
    "sigmoid by hand": (lambda x: 1 / (1 + torch.exp(-x)), "sigmoid"),
    "sigmoid in place": (lambda x: x.sigmoid_(), "sigmoid"),
    "log-sigmoid": (F.logsigmoid, "logsigmoid"),
    "and dropout": (nn.Sequential(nn.Softmax(1), nn.Dropout(0.5)), "softmax"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@torch.no_grad()
def test_a_head_is_found_however_it_is_written(spelling: str) -> None:
    head, kind = SPELLINGS[spelling]
    network = Headed(head).eval()
    images = noise(6, *SHAPE)
    expected, logits = network(images), network.logits(images)
    graph_module = trace(network)
    assert cut_head(graph_module, noise(4, *SHAPE, seed=1), network(noise(4, *SHAPE, seed=1)))
    assert head_of(graph_module) == kind
    found = graph_module(images)
    # Up to what the head does not see: a temperature, or what is added to all logits.
    torch.testing.assert_close(
        probabilities_of(restored(graph_module)(images), kind), probabilities_of(expected, kind)
    )
    if "temperature" not in spelling and "hand" not in spelling:
        torch.testing.assert_close(found, logits)
    torch.testing.assert_close(restored(graph_module)(images), expected)
    assert head_of(restored(graph_module)) == "logits"


def restored(graph_module: nn.Module) -> nn.Module:
    return restore_head(copy.deepcopy(graph_module))


@torch.no_grad()
def test_distributions_of_any_other_origin_get_a_logarithm() -> None:
    network = Headed(lambda x: (x.softmax(1) + (x * 2).softmax(1)) / 2).eval()
    images = noise(6, *SHAPE)
    graph_module = trace(network)
    assert cut_head(graph_module, images, network(images))
    torch.testing.assert_close(graph_module(images), network(images).log(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(restored(graph_module)(images), network(images))


@torch.no_grad()
def test_a_network_that_puts_out_logits_is_left_alone() -> None:
    network = Headed(nn.Identity()).eval()
    graph_module = trace(network)
    before = str(graph_module.graph)
    assert not cut_head(graph_module, noise(4, *SHAPE), network(noise(4, *SHAPE)))
    assert str(graph_module.graph) == before
    assert head_of(graph_module) == "logits"


@torch.no_grad()
def test_copies_and_graphs_of_a_graph_remember_the_head() -> None:
    network = Headed(nn.Softmax(1)).eval()
    graph_module = trace(network)
    assert cut_head(graph_module, noise(4, *SHAPE), network(noise(4, *SHAPE)))
    assert head_of(trace(copy.deepcopy(graph_module))) == "softmax"


@pytest.mark.parametrize("head", HEADS)
def test_logits_and_probabilities_of_outputs_agree(head: str) -> None:
    logits = noise(4, 5) * 20
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "logits": lambda x: x,
        "softmax": lambda x: x.softmax(1),
        "log_softmax": lambda x: x.log_softmax(1),
        "sigmoid": torch.sigmoid,
        "logsigmoid": F.logsigmoid,
        "next_tokens": lambda x: x.movedim(1, -1),
    }
    if head == "next_tokens":
        logits = noise(4, 5, 3) * 20
    outputs = functions[head](logits)
    probability = torch.sigmoid if "sigmoid" in head else functions["softmax"]
    torch.testing.assert_close(probabilities_of(outputs, head), probability(logits))
    found = logits_of(outputs, head)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(probability(found), probability(logits), rtol=1e-3, atol=1e-6)
    if "sigmoid" not in head:
        assert torch.equal(found.argmax(1), logits.argmax(1))
