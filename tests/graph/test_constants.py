from __future__ import annotations

import torch
from torch import Tensor, nn

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
