from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from hast_lightning.errors import ModelError
from hast_lightning.models.resnet import BasicBlock, CifarResNet, SubsampledIdentity
from tests.real_data import cifar10_folder, reference_file


def published_resnet20() -> CifarResNet:
    path = cifar10_folder() / "resnet20-12fca82f.th"
    # Saved on a GPU, hence the location.
    weights = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    network = CifarResNet(20, 10)
    network.load_state_dict({key.removeprefix("module."): w for key, w in weights.items()})
    return network.eval()


@torch.no_grad()
def test_the_published_resnet20_is_right_on_932_of_1017_test_images() -> None:
    network = published_resnet20()
    with np.load(cifar10_folder() / "cifar10_test_first1017.npz") as archive:
        pixels = torch.from_numpy(archive["x"]).permute(0, 3, 1, 2).float() / 255
        labels = torch.from_numpy(archive["y"])
    mean = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
    std = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    predicted = network((pixels - mean) / std).argmax(dim=1)
    assert len(predicted) == 1017
    assert int((predicted == labels).sum()) == 932


@torch.no_grad()
def test_the_published_resnet20_gives_the_reference_logits() -> None:
    with np.load(reference_file()) as reference:
        images, expected = (torch.from_numpy(reference[k]) for k in ("images", "teacher_logits"))
    torch.testing.assert_close(published_resnet20()(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("depth", "parameters"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_parameter_counts_are_those_of_the_paper(depth: int, parameters: float) -> None:
    # He et al. 2016, table 6, in millions.
    count = sum(weight.numel() for weight in CifarResNet(depth, 10).parameters())
    assert round(count / 1e6, 2) == parameters


def test_layers_are_counted_as_depth_without_convolutions_in_shortcuts() -> None:
    kinds = (nn.Conv2d, nn.Linear)
    network = CifarResNet(26, 10)
    assert sum(isinstance(module, kinds) for module in network.modules()) == 26


def test_names_of_the_state_dict_are_those_of_public_checkpoints() -> None:
    keys = {key.rpartition(".")[0] for key in CifarResNet(14, 10).state_dict()}
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1)]
    layers = ("conv1", "bn1", "conv2", "bn2")
    expected = {"conv1", "bn1", "linear"}
    assert keys == expected | {f"{block}.{layer}" for block in blocks for layer in layers}


@torch.no_grad()
def test_small_gray_images_of_another_width() -> None:
    network = CifarResNet(8, 7, in_channels=1, width=4).eval()
    images = torch.randn(2, 1, 8, 8)
    assert network(images).shape == (2, 7)
    assert network.linear.in_features == 16


def test_the_shortcut_keeps_every_second_pixel_and_pads_channels_on_both_sides() -> None:
    features = torch.randn(2, 4, 6, 6)
    output = SubsampledIdentity(4, 8, stride=2)(features)
    assert output.shape == (2, 8, 3, 3)
    assert torch.equal(output[:, 2:6], features[:, :, ::2, ::2])
    assert not output[:, :2].any()
    assert not output[:, 6:].any()


@torch.no_grad()
def test_a_block_whose_body_is_zero_passes_its_positive_input_on() -> None:
    block = BasicBlock(4, 4, stride=1).eval()
    nn.init.zeros_(block.bn2.weight)
    features = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(features), features.clamp(min=0))


@torch.no_grad()
def test_graph_calls_each_activation_module_once_and_computes_the_same() -> None:
    network = CifarResNet(14, 10).eval()
    traced = fx.symbolic_trace(network)
    activations = [
        str(node.target)
        for node in traced.graph.nodes
        if node.op == "call_module" and isinstance(traced.get_submodule(node.target), nn.ReLU)
    ]
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1)]
    inner_and_outer = [f"{block}.{name}" for block in blocks for name in ("relu1", "relu2")]
    assert activations == ["relu", *inner_and_outer]
    images = torch.randn(3, 3, 32, 32)
    assert torch.equal(traced(images), network(images))


def test_gradients_reach_the_images_and_every_parameter() -> None:
    network = CifarResNet(8, 10, width=4)
    images = torch.randn(4, 3, 16, 16, requires_grad=True)
    network(images).square().sum().backward()
    gradients: list[Tensor | None] = [images.grad, *(p.grad for p in network.parameters())]
    assert all(gradient is not None and gradient.any() for gradient in gradients)


@pytest.mark.parametrize("depth", [-4, 0, 2, 9, 18, 51])
def test_impossible_depths_are_refused(depth: int) -> None:
    with pytest.raises(ModelError, match=f"depth={depth} is not possible; allowed: 6n \\+ 2"):
        CifarResNet(depth, 10)


@pytest.mark.parametrize("key", ["num_classes", "in_channels", "width"])
def test_sizes_below_one_are_refused(key: str) -> None:
    sizes = {"num_classes": 10, key: 0}
    with pytest.raises(ModelError, match=f"{key}=0 is not possible; allowed: 1 or more"):
        CifarResNet(8, **sizes)
