"""Feature taps: the ends of blocks, found in graphs and selected by patterns."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from hast_lightning.errors import ModelError
from hast_lightning.graph.blocks import find_taps, last_activations, select_taps
from hast_lightning.graph.tracing import trace
from hast_lightning.models.resnet import CifarResNet


def targets(network: nn.Module, taps: list[str]) -> list[str]:
    """The dotted names of the layers that the taps call."""
    called = {node.name: str(node.target) for node in trace(network).graph.nodes}
    return [called[tap] for tap in taps]


def found(network: nn.Module) -> list[str]:
    network.eval()
    return targets(network, find_taps(trace(network)))


def blocks(stages: list[int], last: str) -> list[str]:
    return [f"layer{s}.{b}.{last}" for s, n in enumerate(stages, start=1) for b in range(n)]


def test_resnet20_has_the_second_batch_norm_of_each_of_its_9_blocks() -> None:
    assert found(CifarResNet(20, 10)) == blocks([3, 3, 3], "bn2")


def test_taps_of_resnet20_are_names_of_nodes() -> None:
    assert find_taps(trace(CifarResNet(20, 10)))[:2] == ["layer1_0_bn2", "layer1_1_bn2"]


def test_resnet18_has_8_and_not_its_downsampling_shortcuts() -> None:
    assert found(torchvision.models.resnet18()) == blocks([2, 2, 2, 2], "bn2")


def test_resnet50_has_the_third_batch_norm_of_each_of_its_16_blocks() -> None:
    assert found(torchvision.models.resnet50()) == blocks([3, 4, 6, 3], "bn3")


def test_mobilenet_v2_has_its_17_projections_once_each() -> None:
    projections = ["features.1.conv.2"] + [f"features.{i}.conv.3" for i in range(2, 18)]
    assert found(torchvision.models.mobilenet_v2()) == projections


def test_blocks_with_squeeze_and_excitation_and_stochastic_depth_end_in_one_tap() -> None:
    network = torchvision.models.efficientnet_b0()
    projections = found(network)
    assert len(projections) == 16
    assert all(isinstance(network.get_submodule(name), nn.BatchNorm2d) for name in projections)


def test_a_network_without_blocks_has_no_taps() -> None:
    assert found(torchvision.models.squeezenet1_1()) == []


def convolution(width: int, stride: int = 1, padding: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.LazyConv2d(width, 3, stride, padding), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    )


class Functions(nn.Module):
    """A plain network whose activations and pooling are functions, with a gate on its maps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.stem, self.gate, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 3, stride=1)
        x = F.avg_pool2d(self.a(x).relu(), 2)
        x = x * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(x, 1)))
        x = F.interpolate(torch.relu(self.b(x)), scale_factor=0.5)
        return self.head(F.relu(F.relu(self.c(x)).mean((2, 3))))


PLAIN: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "pooled": (
        lambda: nn.Sequential(
            *(convolution(4), convolution(4), nn.MaxPool2d(2)),
            *(convolution(8), nn.AvgPool2d(2, 2), convolution(8), convolution(8)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.ReLU()),
        ),
        ["1.2", "3.2", "6.2"],
    ),
    "strides": (
        lambda: nn.Sequential(
            *(convolution(4), convolution(4, 2), convolution(4), convolution(8, 2)),
            *(nn.Flatten(), nn.LazyLinear(8), nn.ReLU()),
        ),
        ["0.2", "2.2", "3.2"],
    ),
    "edges": (
        lambda: nn.Sequential(
            convolution(4, 1, 0), convolution(4, 1, 0), nn.MaxPool2d(3, 1), convolution(4, 1, 0)
        ),
        ["3.2"],
    ),
    "functions": (Functions, ["relu_1", "relu_2", "relu_3"]),
    "vectors": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU()), []),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_a_plain_network_is_aligned_at_the_last_activation_of_each_resolution(kind: str) -> None:
    build, expected = PLAIN[kind]
    network = build().eval()
    if kind not in ("functions", "vectors"):
        network(torch.zeros(1, 3, 16, 16))
    assert targets(network, last_activations(trace(network))) == expected or (
        last_activations(trace(network)) == expected
    )
    assert select_taps(trace(network), None) == last_activations(trace(network))


def test_networks_with_blocks_are_aligned_there() -> None:
    graph_module = trace(CifarResNet(8, 10).eval())
    assert select_taps(graph_module, None) == find_taps(graph_module)
    assert last_activations(graph_module) == [f"layer{stage}_0_relu2" for stage in (1, 2, 3)]


class Addition(nn.Module):
    """A body of two convolutions added to a shortcut of one, in any spelling and order."""

    def __init__(self, add: Callable[[Tensor, Tensor], Tensor], swap: bool) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.short = (nn.Conv2d(3, 3, 1) for _ in range(4))
        self.add, self.swap = add, swap

    def forward(self, images: Tensor) -> Tensor:
        images = self.stem(images)
        body, shortcut = self.second(self.first(images)), self.short(images)
        return self.add(shortcut, body) if self.swap else self.add(body, shortcut)


ADDITIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "plus": operator.add,
    "augmented": operator.iadd,
    "torch.add": torch.add,
    "keyword": lambda a, b: torch.add(input=a, other=b),
    "mixed": lambda a, b: torch.add(a, other=b),
    "method": lambda a, b: a.add(b),
    "in-place method": lambda a, b: a.add_(b),
}


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("spelling", ADDITIONS)
def test_the_operand_with_more_convolutions_is_the_body(spelling: str, swap: bool) -> None:
    assert found(Addition(ADDITIONS[spelling], swap)) == ["second"]


class NoBody(nn.Module):
    """Additions without a residual body: equal branches, a constant, a number."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.offset = nn.Parameter(torch.zeros(3, 1, 1))
        self.add = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        return self.add(self.left(images) + self.right(images) + self.offset + 1)


def test_additions_without_a_body_and_layers_named_add_are_no_taps() -> None:
    assert found(NoBody()) == []


class Separable(nn.Module):
    """Depthwise and pointwise convolution with what may come between and after."""

    def __init__(self, batch_norm: bool, groups: int = 4, channels: int = 4) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, groups=groups)
        self.between = nn.BatchNorm2d(channels) if batch_norm else nn.Identity()
        self.pointwise = nn.Conv2d(channels, 8, 1)
        self.after = nn.BatchNorm2d(8) if batch_norm else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(self.after(self.pointwise(F.relu6(self.between(self.depthwise(images))))))


@pytest.mark.parametrize(("batch_norm", "end"), [(True, "after"), (False, "pointwise")])
def test_a_separable_block_ends_at_its_batch_norm_or_else_its_convolution(
    batch_norm: bool, end: str
) -> None:
    assert found(Separable(batch_norm)) == [end]


@pytest.mark.parametrize(("groups", "channels"), [(2, 4), (1, 4), (1, 1)])
def test_other_convolutions_before_a_pointwise_one_make_no_block(
    groups: int, channels: int
) -> None:
    assert found(Separable(True, groups, channels)) == []


# -- selection ----------------------------------------------------------------------------


def test_without_patterns_the_found_taps_are_selected() -> None:
    graph_module = trace(CifarResNet(20, 10))
    assert select_taps(graph_module, None) == find_taps(graph_module) != []


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["layer?.0.bn2"], ["layer1_0_bn2", "layer2_0_bn2", "layer3_0_bn2"]),
        (["layer3_0_*conv*", "layer1_0_bn2"], ["layer1_0_bn2", "layer3_0_conv1", "layer3_0_conv2"]),
        (["layer1.0.bn2", "*1_0_bn2"], ["layer1_0_bn2"]),
        (["add_1"], ["add_1"]),
        ([], []),
    ],
)
def test_patterns_match_nodes_and_layers_in_order_and_once(
    patterns: list[str], expected: list[str]
) -> None:
    assert select_taps(trace(CifarResNet(8, 10)), patterns) == expected


@pytest.mark.parametrize("pattern", ["layer9.*", "LAYER1.0.BN2", "output", "images"])
def test_a_pattern_that_matches_nothing_is_refused_with_some_names(pattern: str) -> None:
    with pytest.raises(ModelError) as caught:
        select_taps(trace(CifarResNet(8, 10)), ["layer1.0.bn2", pattern])
    assert f"model.taps: {pattern!r} matches nothing" in str(caught.value)
    assert "conv1" in str(caught.value)
    assert "\n" not in str(caught.value)
