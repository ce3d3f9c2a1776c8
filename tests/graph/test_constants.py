from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hast_lightning.graph.constants import fix_constants
from hast_lightning.graph.tracing import trace


class Network(nn.Module):
    """Adds frequencies, which are constant, and numbers of the samples, which are not."""

    def forward(self, x: Tensor) -> Tensor:
        rates = torch.exp(torch.arange(3, device=x.device) / 3)
        return x * rates + torch.arange(x.shape[0])[:, None]


def test_what_no_input_has_a_part_in_is_computed_once() -> None:
    graph_module = trace(Network().eval())
    fix_constants(graph_module, torch.randn(4, 3))
    functions = [node.target for node in graph_module.graph.nodes]
    assert torch.exp not in functions and functions.count(torch.arange) == 1
    assert [name for name, _ in graph_module.named_buffers()] == ["constant_0"]
    inputs = torch.randn(5, 3)
    torch.testing.assert_close(graph_module(inputs), Network()(inputs))


def relu_by_option(h: Tensor) -> None:
    F.relu(h, inplace=True)


def relu_behind_a_view(h: Tensor) -> None:
    h.view(-1).relu_()


OVERWRITING: list[Callable[[Tensor], object]] = [
    *(lambda h: h.add_(1), lambda h: torch.relu_(h), relu_by_option, relu_behind_a_view),
    lambda h: nn.ReLU(inplace=True)(h),
]


class Statement(nn.Module):
    """Overwrites what it has computed, and frequencies, in statements of their own."""

    def __init__(self, overwrite: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.overwrite = overwrite

    def forward(self, x: Tensor) -> Tensor:
        h, rates = x * 2, torch.arange(3, device=x.device) - 1.5
        self.overwrite(h)
        self.overwrite(rates)
        return h * rates + torch.exp(rates)


@pytest.mark.parametrize("overwrite", OVERWRITING, ids=range(len(OVERWRITING)))
def test_statements_that_overwrite_values_stay(overwrite: Callable[[Tensor], object]) -> None:
    network = Statement(overwrite).eval()
    graph_module, inputs = trace(network), torch.randn(4, 3)
    fix_constants(graph_module, inputs)
    for _ in range(2):
        torch.testing.assert_close(graph_module(inputs), network(inputs))
