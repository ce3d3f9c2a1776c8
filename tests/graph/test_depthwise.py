from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from hast_lightning.graph.depthwise import keep_depthwise_in_float32
from hast_lightning.quantization.fake_quant import QuantConv2d
from tests.small_runs import build_module, small


def convolution(kernel: int = 3, stride: int = 1, dilation: int = 1, groups: int = 4) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(4, 4, kernel, stride, dilation, dilation, groups)


SLOW = (
    *(convolution(stride=2), convolution(kernel=5), convolution(dilation=2)),
    *(convolution(kernel=5, stride=2), convolution(kernel=1)),
)
QUICK = (convolution(), convolution(groups=1, stride=2), convolution(groups=2, stride=2))


def gradients(layer: nn.Conv2d, *, autocast: bool) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    inputs = torch.randn(2, 4, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = layer(inputs)
    found = torch.autograd.grad(output.float().square().sum(), [inputs, layer.weight])
    return (output, *found)


@pytest.mark.parametrize("layer", SLOW, ids=str)
def test_slow_ones_are_as_in_float32(layer: nn.Conv2d) -> None:
    expected = gradients(layer, autocast=False)
    network = nn.Sequential(copy.deepcopy(layer))
    keep_depthwise_in_float32(network)
    for autocast in (False, True):
        for found, value in zip(gradients(network[0], autocast=autocast), expected, strict=True):
            assert found.dtype == torch.float32
            assert torch.equal(found, value)


@pytest.mark.parametrize("layer", QUICK, ids=str)
def test_others_stay_as_they_are(layer: nn.Conv2d) -> None:
    network = nn.Sequential(copy.deepcopy(layer))
    keep_depthwise_in_float32(network)
    assert "_conv_forward" not in vars(network[0])
    assert gradients(network[0], autocast=True)[0].dtype == torch.bfloat16


def test_a_copy_computes_with_its_own_weights() -> None:
    network = nn.Sequential(convolution(stride=2))
    keep_depthwise_in_float32(network)
    copied = copy.deepcopy(network)
    with torch.no_grad():
        copied[0].weight.zero_()
        copied[0].bias.zero_()
        assert not copied(torch.ones(1, 4, 8, 8)).any()
        assert network(torch.ones(1, 4, 8, 8)).any()


def test_a_network_is_pickled_with_it() -> None:
    network = nn.Sequential(convolution(stride=2))
    keep_depthwise_in_float32(network)
    loaded = pickle.loads(pickle.dumps(network))
    inputs = torch.randn(2, 4, 8, 8)
    assert torch.equal(loaded(inputs), network(inputs))
    with torch.autocast("cpu", torch.bfloat16):
        assert loaded(inputs).dtype == torch.float32


def test_both_networks_of_a_run_have_it() -> None:
    module = build_module(
        small("model=own", "model.factory=tests.graph.test_depthwise:separable", *OF_IT)
    )
    for network in (module.student, module.teacher):
        found = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
        assert len(found) == 1 + (network is module.teacher)
        assert all("_conv_forward" in vars(each) for each in found)
    assert any(isinstance(each, QuantConv2d) for each in module.student.modules())


OF_IT = ("model.input_size=8", "model.mean=[0.5]", "model.std=[0.5]", "model.checkpoint=null")


def separable(num_classes: int = 10) -> nn.Module:
    """A network with one strided depthwise layer."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)),
    )
