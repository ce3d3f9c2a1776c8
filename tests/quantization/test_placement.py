"""Which values are quantized: behind activations, or all that an integer engine stores."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn
from torch.nn import functional as F

from hast_lightning.graph.operations import layer_of, rearranges
from hast_lightning.graph.tracing import trace
from hast_lightning.models.resnet import CifarResNet
from hast_lightning.quantization.axes import Placement
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.fake_quant import (
    ActivationMode,
    ActivationQuantizer,
    QuantConv2d,
    QuantLinear,
    activation_quantizers,
    freeze_ranges,
    quantized_layers,
    set_activation_mode,
)
from hast_lightning.quantization.placement import Integer, LayerInputs, Simulated
from hast_lightning.quantization.settings import QuantizerConfig
from hast_lightning.quantization.transformer_placement import Transformer
from tests.diffusion import loaded

DEPLOYED = QuantizerConfig(8, include_zero=True, placement=Integer())


class Network(nn.Module):
    """Four convolutions of four channels, two BatchNorms and a linear layer, put together."""

    def __init__(self, forward: Callable[[Network, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.bn, self.bn2, self.relu = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU()
        self.pool, self.linear = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def head(n: Network, x: Tensor) -> Tensor:
    return n.linear(n.pool(x).flatten(1))


def stored_in(forward: Callable[[Network, Tensor], Tensor]) -> list[str]:
    return [node.name for node in Integer().values(trace(Network(forward).eval()))]


def squeeze_and_excite(n: Network, x: Tensor) -> Tensor:
    x = F.hardswish(n.bn(n.a(x)))
    scale = F.hardsigmoid(n.c(F.relu(n.b(n.pool(x)))))
    return n.d(x * scale)


def dense(n: Network, x: Tensor) -> Tensor:
    first = n.a(x)
    second = n.b(first)
    return n.relu(n.bn(torch.cat([first, second], 1).chunk(2, 1)[0]))


def inception(n: Network, x: Tensor) -> Tensor:
    x = torch.cat([F.relu(n.a(x)), n.b(x)], 1)
    return n.c(x[:, ::2]) + n.d(F.max_pool2d(x[:, 1::2], 1))


def shuffled(n: Network, x: Tensor) -> Tensor:
    images, channels, height, width = x.size()
    x = n.relu(n.a(x)).view(images, 2, channels // 2, height, width).transpose(1, 2)
    return n.b(x.reshape(images, channels, height, width))


def pre_activation(n: Network, x: Tensor) -> Tensor:
    x = n.a(x)
    body = n.c(n.relu(n.bn(n.b(n.relu(n.bn2(x))))))
    return n.d(n.relu(x + body))


def rectified_sum(n: Network, x: Tensor) -> Tensor:
    x = n.a(x) + n.b(x)
    return n.c(n.relu(x)) + n.d(x)


STORED: dict[str, tuple[Callable[[Network, Tensor], Tensor], list[str]]] = {
    # Convolution, BatchNorm and activation are one operation; the logits are put out as they are.
    "chain": (lambda n, x: head(n, n.relu(n.bn(n.a(x)))), ["x", "relu", "pool"]),
    "pooled first": (lambda n, x: n.b(n.relu(F.max_pool2d(n.a(x), 2))), ["x", "relu"]),
    "pooled behind": (lambda n, x: n.b(F.max_pool2d(n.relu(n.a(x)), 2)), ["x", "relu"]),
    "silu": (lambda n, x: n.b(F.silu(n.bn(n.a(x)))), ["x", "silu"]),
    # A sum's operands are stored, and the sum itself unless it goes right into an activation.
    "residual": (lambda n, x: n.b(x + n.bn(n.a(x))), ["x", "bn", "add"]),
    "residual relu": (lambda n, x: n.b(n.relu(x + n.bn(n.a(x)))), ["x", "bn", "relu"]),
    "residual last": (lambda n, x: x + n.a(x), ["x", "a"]),
    "in place": (lambda n, x: n.b(n.a(x).add_(x)), ["x", "a", "add_"]),
    "scaled": (lambda n, x: n.b(n.a(x) * 0.5), ["x", "a", "mul"]),
    # What rearranges quantized values needs no quantizer, whatever their use.
    "twice used": (lambda n, x: n.b(n.a(x)) + n.c(n.a(x)), ["x", "a", "b", "a_1", "c"]),
    "shuffled": (shuffled, ["x", "relu"]),
    "rectified sum": (rectified_sum, ["x", "a", "b", "add", "c", "d"]),
    "inception": (inception, ["x", "cat", "c", "d"]),
    "dense": (dense, ["x", "a", "cat"]),
    "squeeze": (squeeze_and_excite, ["x", "hardswish", "pool", "relu", "hardsigmoid", "mul"]),
    # A BatchNorm that follows no convolution is an operation of its own.
    "pre-activation": (pre_activation, ["x", "a", "relu", "relu_1", "c", "relu_2"]),
    "two uses": (lambda n, x: n.bn(y := n.a(x)) + y, ["x", "a", "bn"]),
}


@pytest.mark.parametrize("name", STORED)
def test_what_an_engine_stores(name: str) -> None:
    forward, expected = STORED[name]
    assert stored_in(forward) == expected


def test_behind_activations_only() -> None:
    network = trace(Network(squeeze_and_excite).eval())
    names = [node.name for node in Simulated().values(network)]
    assert names == ["hardswish", "relu", "hardsigmoid"]


def test_several_inputs_are_quantized_behind_the_last_of_them() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, values: Tensor, other: Tensor) -> Tensor:
            return self.conv(values + other)

    student = convert(Two(), DEPLOYED)
    assert [node.op for node in student.graph.nodes][:2] == ["placeholder"] * 2
    assert len(activation_quantizers(student)) == 3  # one of them is called like a dict's method
    x = torch.ones(1, 4, 2, 2)
    assert student(x, x).isfinite().all()


# --- on real networks: every product's operand is on a grid, and nothing is rounded twice -----


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "cifar": lambda: CifarResNet(8, 5, width=4),
    **{
        name: lambda name=name: torchvision.models.get_model(name, weights=None, num_classes=5)  # type: ignore[misc]
        for name in ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5")
    },
    "squeezenet": lambda: torchvision.models.squeezenet1_1(weights=None, num_classes=5),
    "efficientnet": lambda: torchvision.models.efficientnet_b0(weights=None, num_classes=5),
    "densenet": lambda: torchvision.models.DenseNet(4, (2, 2), 8, num_classes=5),
}


def sources_on_a_grid(node: fx.Node, student: fx.GraphModule) -> bool:
    """Whether ``node``'s value comes from quantizers alone, rearranged at most."""
    if isinstance(layer_of(node, student), ActivationQuantizer):
        return True
    passes = rearranges(node, student) or isinstance(layer_of(node, student), nn.ReLU)
    return passes and sources_on_a_grid(node.all_input_nodes[0], student)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_product_takes_in_quantized_values_and_none_is_quantized_twice(name: str) -> None:
    student = convert(NETWORKS[name]().eval(), DEPLOYED)
    products = 0
    for node in student.graph.nodes:
        layer = layer_of(node, student)
        if isinstance(layer, QuantConv2d | QuantLinear):
            products += 1
            assert sources_on_a_grid(node.all_input_nodes[0], student), node.name
        if isinstance(layer, ActivationQuantizer):
            assert not sources_on_a_grid(node.all_input_nodes[0], student), node.name
    assert products > 5


@pytest.mark.parametrize("name", ["cifar", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
@torch.no_grad()
def test_a_deployable_student_has_integers_wherever_it_multiplies(name: str) -> None:
    torch.manual_seed(0)
    student = convert(NETWORKS[name]().eval(), DEPLOYED)
    seen: list[Tensor] = []
    for module in student.modules():
        if isinstance(module, QuantConv2d | QuantLinear):
            module.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    set_activation_mode(student, ActivationMode.OBSERVE)
    student(torch.randn(2, 3, 32, 32))
    freeze_ranges(student)
    seen.clear()
    student(torch.randn(2, 3, 32, 32))
    scales = torch.stack([quantizer.scale for quantizer in activation_quantizers(student)])
    assert all(0 <= q.zero_point <= 255 for q in activation_quantizers(student))
    for values in seen:
        integers = values.flatten()[:500, None] / scales
        on_grid = ((integers - integers.round()).abs() < 1e-2).all(dim=0)
        assert on_grid.any()


def test_layer_inputs_are_what_layers_with_weights_take_in() -> None:
    graph_module = trace(loaded().network)
    found = [node.name for node in LayerInputs().values(graph_module)]
    # The picture and not the timestep, each operand of a concatenation, and no output.
    assert found[:3] == ["getitem", "sin", "cos"]
    assert "getitem_1" not in found and "cat" not in found and "network_head" not in found
    # What is upsampled and the skip have ranges of their own, in front of the concatenation's norm
    # nothing is quantized; the layer behind takes in its activation, and the shortcut both.
    assert {"interpolate", "add_1", "silu_6"} <= set(found) and "cat_1" not in found
    assert found[-1] == "add_5"


def test_first_and_last_layers_of_a_denoising_network_have_8_bits() -> None:
    settings = QuantizerConfig(4, placement=LayerInputs(), first_and_last_8bit=True)
    student = convert(loaded().network, settings)
    bits = {name: q.bits for name, q in student.activation_quantizers.items()}  # type: ignore[union-attr,operator]
    assert [name for name, width in bits.items() if width == 8] == [
        "getitem",
        "sin",
        "cos",
        "add_5",
    ]
    of_weights = {name: layer.weight_quantizer.bits for name, layer in quantized_layers(student)}
    eight = {name for name, width in of_weights.items() if width == 8}
    assert eight == {"network.time.0", "network.stem", "network.head"}


@pytest.mark.parametrize("placement", [Integer(), Transformer(picture=True), LayerInputs()])
def test_a_picture_and_its_timestep_have_no_range_together(placement: Placement) -> None:
    """A step of 1,000 timesteps over 255 would leave nothing of a picture."""
    settings = QuantizerConfig(8, placement=placement, include_zero=True)
    student = convert(loaded().network, settings)
    found = [node for node in student.graph.nodes if node.name in ("inputs", "mul_1")]
    assert len(found) == 2
    assert not any("activation_quantizers" in str(user.target) for n in found for user in n.users)
    (picture,) = (node for node in student.graph.nodes if node.name == "getitem")
    assert [user.target for user in picture.users] == ["activation_quantizers.getitem"]
