"""What the operations of a graph are, however they are spelled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from hast_lightning.graph.operations import is_activation, is_rectifier, rearranges, values_of
from hast_lightning.graph.tracing import trace

Operation = Callable[[Tensor], Tensor]


class Applying(nn.Module):
    def __init__(self, operation: Operation) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(x)


def graph_of(operation: Operation) -> tuple[fx.GraphModule, fx.Node]:
    """A graph of one operation, and its node."""
    graph_module = trace(Applying(operation).eval())
    return graph_module, next(node for node in graph_module.graph.nodes if node.op[:4] == "call")


RECTIFIERS: list[Operation] = [
    *(nn.ReLU(), F.relu, torch.relu, F.relu_, lambda x: x.relu(), lambda x: x.relu_()),
]
ACTIVATIONS: list[Operation] = [
    *RECTIFIERS,
    *(
        nn.SiLU(),
        nn.Hardswish(),
        nn.Hardsigmoid(),
        nn.GELU(),
        nn.Sigmoid(),
        nn.PReLU(),
        nn.Softsign(),
    ),
    *(F.relu6, F.silu, F.hardswish, F.hardsigmoid, F.gelu, F.mish, F.softplus, F.elu_),
    *(torch.sigmoid, torch.tanh, torch.selu, lambda x: x.sigmoid(), lambda x: F.hardtanh_(x)),
    *(lambda x: torch.clamp(x, 0, 6), lambda x: x.clamp(min=0), lambda x: x.clamp_min_(0)),
]
REARRANGING: list[Operation] = [
    *(nn.Identity(), nn.Dropout(), StochasticDepth(0.2, "row"), nn.Flatten(), nn.MaxPool2d(2)),
    *(nn.ZeroPad2d(1), nn.PixelShuffle(2), nn.Upsample(scale_factor=2), nn.AdaptiveMaxPool2d(1)),
    *(lambda x: F.max_pool2d(x, 2), lambda x: F.dropout(x, training=False), lambda x: x[:, ::2]),
    *(lambda x: x.view(2, -1), lambda x: torch.flatten(x, 1), lambda x: x.permute(0, 2, 3, 1)),
    *(lambda x: x.chunk(2, 1)[0], lambda x: F.pad(x, (1, 1)), lambda x: F.interpolate(x, (8, 8))),
    *(lambda x: F.pad(x, (1, 1), value=0), lambda x: torch.cat([x]), lambda x: x.contiguous()),
    *(lambda x: F.pad(x, (1, 1, 1, 1), "reflect"), lambda x: F.channel_shuffle(x, 2)),
]
COMPUTING: list[Operation] = [
    *(nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)),
    *(nn.Upsample(scale_factor=2, mode="bilinear"), lambda x: x.mean((2, 3)), lambda x: x + 1),
    *(lambda x: F.interpolate(x, (8, 8), mode="bilinear"), lambda x: F.pad(x, (1, 1), value=1)),
    *(lambda x: F.pad(x, (1, 1), "constant", 2.0), lambda x: torch.cat([x, torch.relu(x)])),
    *(lambda x: F.interpolate(x, None, 2, "bilinear"), lambda x: F.avg_pool2d(x, 2)),
]


@pytest.mark.parametrize("operation", ACTIVATIONS, ids=range(len(ACTIVATIONS)))
def test_activations_are_found(operation: Operation) -> None:
    graph_module, node = graph_of(operation)
    assert is_activation(node, graph_module)
    assert is_rectifier(node, graph_module) == (operation in RECTIFIERS)
    assert not rearranges(node, graph_module)


@pytest.mark.parametrize("operation", REARRANGING, ids=range(len(REARRANGING)))
def test_what_rearranges_puts_out_nothing_but_what_it_takes_in_and_zeros(
    operation: Operation,
) -> None:
    graph_module, node = graph_of(operation)
    assert rearranges(node, graph_module)
    assert not is_activation(node, graph_module)
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    output = graph_module(x)
    assert set(output.flatten().tolist()) <= {0.0, *x.flatten().tolist()}


@pytest.mark.parametrize("operation", COMPUTING, ids=range(len(COMPUTING)))
def test_what_computes_new_values_does_not_rearrange(operation: Operation) -> None:
    graph_module, _ = graph_of(operation)
    last = graph_module.graph.output_node().all_input_nodes[0]
    assert not rearranges(last, graph_module)
    assert not is_activation(last, graph_module)


def test_shapes_and_parameters_are_no_values() -> None:
    class Shaping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            images, channels, height, _ = x.size()
            half = channels // 2
            x = x.view(images, 2, half, -1).transpose(1, 2) * self.scale
            return x.reshape(x.shape[0], half * height, -1)

    values = values_of(trace(Shaping()).graph)
    assert [node.name for node in values] == ["x", "view", "transpose", "mul", "reshape"]
