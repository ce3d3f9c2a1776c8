"""Graphs of networks: tracing and its refusals, intermediate values, BatchNorm folding."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from hast_lightning.errors import ModelError
from hast_lightning.graph.tracing import batch_norm_inputs, expose, fold_batch_norms, trace
from hast_lightning.models.checkpoints import load_weights
from hast_lightning.models.resnet import CifarResNet
from tests.real_data import cifar10_folder


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def randomize_batch_norms(network: nn.Module, seed: int = 0) -> nn.Module:
    """BatchNorms far from the identity, so that a wrong or missing fold shows."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.3, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
            layer.weight.uniform_(0.5, 1.5, generator=generator)
            layer.bias.normal_(0, 0.3, generator=generator)
    return network.eval()


class DataDependent(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images if images.sum() > 0 else -images


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.gate = DataDependent()

    def forward(self, images: Tensor) -> Tensor:
        return self.gate(self.stem(images))


class InPlace(nn.Module):
    """Overwrites the output of its BatchNorm in one of several ways."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.bn = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        normalized = self.bn(images)
        if self.kind == "module":
            return self.relu(normalized)
        if self.kind == "function":
            return F.relu(normalized, inplace=True)
        if self.kind == "torch function":
            return torch.relu_(normalized)
        if self.kind == "method":
            return normalized.add_(images)
        normalized += images
        return normalized


# -- trace --------------------------------------------------------------------------------


def test_an_untraceable_network_is_refused_with_reason_module_and_place() -> None:
    with pytest.raises(ModelError) as caught:
        trace(Untraceable())
    message = str(caught.value)
    assert "Untraceable cannot be traced" in message
    assert "control flow" in message
    assert "in module 'gate'" in message
    assert "test_tracing.py" in message
    assert "images.sum() > 0" in message
    assert "\n" not in message


def test_the_failing_place_is_named_when_the_network_itself_fails() -> None:
    place = r"DataDependent cannot .* at test_tracing\.py:\d+ \(return"
    with pytest.raises(ModelError, match=place):
        trace(DataDependent())


def test_a_graph_shares_its_layers_and_computes_the_same() -> None:
    network = randomize_batch_norms(CifarResNet(8, 5))
    graph_module = trace(network)
    images = noise(2, 3, 16, 16)
    assert torch.equal(graph_module(images), network(images))
    assert graph_module.get_submodule("layer1.0.conv1") is network.layer1[0].conv1
    assert set(graph_module.state_dict()) == set(network.state_dict())


def test_tracing_a_graph_again_keeps_the_names_of_nodes() -> None:
    graph_module = trace(torchvision.models.resnet18().eval())
    again = trace(graph_module)
    names = [[node.name for node in module.graph.nodes] for module in (graph_module, again)]
    assert names[0] == names[1]
    assert again is not graph_module


# -- expose -------------------------------------------------------------------------------


def test_exposed_values_are_what_hooks_see() -> None:
    network = randomize_batch_norms(CifarResNet(8, 5))
    seen: dict[str, Tensor] = {}
    for name in ("layer1.0.bn2", "layer3.0.conv1"):
        layer = network.get_submodule(name)
        layer.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    images = noise(2, 3, 16, 16)
    names = ["layer3_0_conv1", "layer1_0_bn2"]
    logits, values = expose(trace(network), names)(images)
    assert torch.equal(logits, network(images))
    assert torch.equal(values[0], seen["layer3.0.conv1"])
    assert torch.equal(values[1], seen["layer1.0.bn2"])


def test_exposing_leaves_the_graph_as_it_was_and_shares_its_layers() -> None:
    graph_module = trace(CifarResNet(8, 5).eval())
    before = str(graph_module.graph)
    exposed = expose(graph_module, ["layer1_0_bn2"])
    assert str(graph_module.graph) == before
    assert exposed.get_submodule("layer1.0") is graph_module.get_submodule("layer1.0")
    assert list(map(id, exposed.parameters())) == list(map(id, graph_module.parameters()))
    assert not exposed.training


def test_exposing_nothing_returns_no_values() -> None:
    _, values = expose(trace(CifarResNet(8, 5).eval()), [])(noise(1, 3, 8, 8))
    assert values == []


def test_a_node_may_be_exposed_twice() -> None:
    _, values = expose(trace(CifarResNet(8, 5).eval()), ["conv1", "conv1"])(noise(1, 3, 8, 8))
    assert torch.equal(values[0], values[1])


def test_an_unknown_node_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"no node 'layer9'.*linear"):
        expose(trace(CifarResNet(8, 5)), ["layer9"])


@pytest.mark.parametrize("kind", ["module", "function", "torch function", "method", "augmented"])
def test_a_value_that_is_overwritten_later_is_exposed_as_it_was(kind: str) -> None:
    network = InPlace(kind).eval()
    images = noise(2, 3, 4, 4)
    output, (value,) = expose(trace(network), ["bn"])(images)
    assert torch.equal(value, network.bn(images))
    assert torch.equal(output, network(images))
    assert not torch.equal(value, output)


class Shared(nn.Module):
    """Overwrites what shares its memory with the output of its BatchNorm."""

    def __init__(self, look: Callable[[Tensor], Tensor], *, before: bool) -> None:
        super().__init__()
        self.bn, self.look, self.before = nn.BatchNorm2d(3), look, before

    def forward(self, images: Tensor) -> Tensor:
        normalized = self.bn(images)
        looked = self.look(normalized)
        (normalized if self.before else looked).add_(1)
        return normalized + looked.reshape(normalized.shape)


LOOKS: list[Callable[[Tensor], Tensor]] = [
    *(nn.Dropout(), nn.Identity(), lambda x: x.view(2, -1), lambda x: x.unsqueeze(0)),
    *(lambda x: x.float(), lambda x: F.dropout(x, training=False)[:, :], nn.Flatten()),
    lambda x: x.chunk(1, 1)[0].detach(),
]


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("look", LOOKS, ids=range(len(LOOKS)))
@torch.no_grad()
def test_a_value_whose_memory_is_overwritten_later_is_exposed_as_it_was(
    look: Callable[[Tensor], Tensor], before: bool
) -> None:
    network, images = Shared(look, before=before).eval(), noise(2, 3, 4, 4)
    output, (value,) = expose(trace(network), ["bn"])(images)
    assert torch.equal(value, network.bn(images))
    assert torch.equal(output, network(images))


def test_values_that_stay_are_not_copied() -> None:
    exposed = expose(trace(CifarResNet(8, 5).eval()), ["layer1_0_bn2"])
    assert not [node for node in exposed.graph.nodes if node.target == "clone"]


# -- BatchNorm inputs ---------------------------------------------------------------------


def test_batch_norm_inputs_are_the_convolutions_of_a_resnet_in_order() -> None:
    inputs = batch_norm_inputs(trace(CifarResNet(8, 5)))
    assert inputs[:3] == [
        ("conv1", "bn1"),
        ("layer1_0_conv1", "layer1.0.bn1"),
        ("layer1_0_conv2", "layer1.0.bn2"),
    ]
    assert len(inputs) == 7


def test_batch_norms_without_running_statistics_are_left_out() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.BatchNorm2d(4)
    )
    assert batch_norm_inputs(trace(network)) == [("_1", "2")]


# -- folding ------------------------------------------------------------------------------

NETWORKS = {
    "cifar_resnet20": (lambda: CifarResNet(20, 10), 32),
    "resnet18": (torchvision.models.resnet18, 64),
    "resnet50": (torchvision.models.resnet50, 64),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, 64),
}


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_folded_network_computes_the_same(name: str) -> None:
    build, size = NETWORKS[name]
    network = randomize_batch_norms(build())
    folded = fold_batch_norms(trace(network))
    images = noise(2, 3, size, size)
    expected = network(images)
    assert float((folded(images) - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())


@torch.no_grad()
def test_folding_keeps_the_names_of_nodes_and_the_original() -> None:
    graph_module = trace(randomize_batch_norms(CifarResNet(8, 5)))
    before = copy.deepcopy(graph_module.state_dict())
    folded = fold_batch_norms(graph_module)
    assert [n.name for n in folded.graph.nodes] == [n.name for n in graph_module.graph.nodes]
    assert isinstance(folded.get_submodule("layer1.0.bn2"), nn.Identity)
    assert all(
        torch.equal(value, before[name]) for name, value in graph_module.state_dict().items()
    )


@torch.no_grad()
def test_folding_keeps_a_bias_and_does_without_affine_parameters() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)).eval()
    network[1].running_mean.copy_(noise(4))
    network[1].running_var.copy_(noise(4).exp())
    network[0].bias.copy_(noise(4, seed=1))
    images = noise(2, 3, 8, 8)
    folded = fold_batch_norms(trace(network))
    torch.testing.assert_close(folded(images), network(images), rtol=1e-5, atol=1e-5)
    assert isinstance(folded.get_submodule("1"), nn.Identity)


class Reused(nn.Module):
    """One convolution called twice, and one whose output is wanted before the BatchNorm too."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 1)
        self.branching = nn.Conv2d(3, 3, 1)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, images: Tensor) -> Tensor:
        once = self.bn1(self.twice(images))
        again = self.bn2(self.twice(once))
        branch = self.branching(again)
        return self.bn3(branch) * branch


@torch.no_grad()
def test_only_convolutions_that_feed_one_batch_norm_once_are_folded() -> None:
    network = randomize_batch_norms(Reused())
    folded = fold_batch_norms(trace(network))
    images = noise(2, 3, 4, 4)
    torch.testing.assert_close(folded(images), network(images))
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules()) == 3


@torch.no_grad()
def test_a_weight_that_a_hook_computes_is_not_folded() -> None:
    convolution = torch.nn.utils.spectral_norm(nn.Conv2d(3, 4, 1))
    network = randomize_batch_norms(nn.Sequential(convolution, nn.BatchNorm2d(4)))
    folded = fold_batch_norms(trace(network))
    images = noise(2, 3, 4, 4)
    torch.testing.assert_close(folded(images), network(images))
    assert isinstance(folded.get_submodule("1"), nn.BatchNorm2d)


@torch.no_grad()
def test_folding_the_published_resnet20_changes_no_logit_noticeably() -> None:
    network = CifarResNet(20, 10)
    load_weights(network, cifar10_folder() / "resnet20-12fca82f.th")
    network.eval()
    images = noise(8, 3, 32, 32)
    torch.testing.assert_close(
        fold_batch_norms(trace(network))(images), network(images), rtol=1e-4, atol=1e-4
    )
