"""The frozen teacher: its statistics and their gradients, its features, and that it stays."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hast_lightning.errors import ModelError
from hast_lightning.graph.blocks import find_taps
from hast_lightning.graph.tracing import trace
from hast_lightning.models.resnet import CifarResNet
from hast_lightning.models.teacher import FrozenTeacher, batch_norms_are_new, channel_statistics

IMAGES = (4, 3, 16, 16)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def network(depth: int = 8) -> CifarResNet:
    """A network whose BatchNorms are far from the identity."""
    torch.manual_seed(0)
    network = CifarResNet(depth, 5)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.normal_(0, 0.3)
    return network.eval()


def teacher() -> FrozenTeacher:
    return FrozenTeacher(network(), ["layer1_0_bn2", "layer3_0_bn2"])


def plain_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    return features.mean((0, 2, 3)), features.var((0, 2, 3), correction=0)


def distance(teacher_outputs: Any) -> Tensor:
    """A scalar in which every mean, every variance and the logits count."""
    logits, statistics = teacher_outputs
    layers = [
        (layer.mean - layer.running_mean).square().sum() + layer.var.log().square().sum()
        for layer in statistics
    ]
    return torch.stack(layers).sum() + logits.logsumexp(1).sum()


# -- statistics per channel ---------------------------------------------------------------


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_statistics_are_mean_and_biased_variance(
    memory_format: torch.memory_format, offset: float
) -> None:
    features = (noise(5, 3, 4, 6) * 2 + offset).contiguous(memory_format=memory_format)
    mean, var = channel_statistics(features)
    expected_mean, expected_var = plain_statistics(features.double())
    torch.testing.assert_close(mean.double(), expected_mean, rtol=1e-6, atol=1e-6)
    # Also far from zero, where the mean of squares less the squared mean loses all digits.
    torch.testing.assert_close(var.double(), expected_var, rtol=1e-5, atol=1e-6)


def test_gradients_pass_gradcheck_in_both_outputs() -> None:
    features = noise(3, 2, 3, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(channel_statistics, (features,))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("used", ["both", "mean", "var"])
def test_gradients_equal_autograds(memory_format: torch.memory_format, used: str) -> None:
    gradients = []
    for function in (channel_statistics, plain_statistics):
        features = noise(5, 3, 4, 6).contiguous(memory_format=memory_format).requires_grad_()
        mean, var = function(features)
        parts = {"mean": mean.pow(3).sum(), "var": var.pow(3).sum()}
        (sum(parts.values()) if used == "both" else parts[used]).backward()  # type: ignore[union-attr]
        gradients.append(features.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_bfloat16_features_are_measured_in_float32() -> None:
    features = (noise(64, 2, 8, 8) + 3).bfloat16().requires_grad_()
    mean, var = channel_statistics(features)
    assert mean.dtype == var.dtype == torch.float32
    torch.testing.assert_close((mean, var), plain_statistics(features.float()))
    (mean.sum() + var.sum()).backward()
    assert features.grad is not None
    assert features.grad.dtype == torch.bfloat16
    assert features.grad.isfinite().all()


# -- the teacher's statistics -------------------------------------------------------------


def test_statistics_are_those_at_every_batch_norm_input() -> None:
    original = network()
    seen: dict[nn.Module, Tensor] = {}
    norms = [layer for layer in original.modules() if isinstance(layer, nn.BatchNorm2d)]
    frozen = FrozenTeacher(original, [])
    for norm in norms:
        norm.register_forward_pre_hook(lambda layer, given: seen.update({layer: given[0]}))
    images = noise(*IMAGES)
    logits, statistics = frozen.statistics(images)
    assert torch.equal(logits, original(images))
    assert len(statistics) == len(norms) == 7
    for norm, layer in zip(norms, statistics, strict=True):
        mean, var = plain_statistics(seen[norm])
        torch.testing.assert_close(layer.mean, mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer.var, var, rtol=1e-5, atol=1e-6)
        assert torch.equal(layer.running_mean, norm.running_mean)
        assert torch.equal(layer.running_var, norm.running_var)


def test_gradients_reach_the_images_as_through_plain_autograd() -> None:
    original = network().requires_grad_(False).double()
    frozen = FrozenTeacher(original, [])
    images = [noise(*IMAGES).double().requires_grad_() for _ in range(2)]
    distance(frozen.statistics(images[0])).backward()

    seen: list[tuple[Tensor, ...]] = []

    def measure(layer: nn.Module, given: tuple[Tensor]) -> None:
        seen.append((*plain_statistics(given[0]), layer.running_mean))

    for layer in original.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(measure)
    logits = original(images[1])
    parts = [(m - r).square().sum() + v.log().square().sum() for m, v, r in seen]
    (torch.stack(parts).sum() + logits.logsumexp(1).sum()).backward()
    torch.testing.assert_close(images[0].grad, images[1].grad)
    assert float(images[0].grad.abs().max()) > 1e-3  # type: ignore[union-attr]


# -- logits and features ------------------------------------------------------------------


@torch.no_grad()
def test_folded_logits_and_features_are_those_of_the_network() -> None:
    original = network(20)
    taps = find_taps(trace(original))
    frozen = FrozenTeacher(original, taps)
    seen: dict[str, Tensor] = {}
    for name in taps:
        layer = original.get_submodule(name.replace("_", "."))
        layer.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    images = noise(*IMAGES)
    expected = original(images)
    logits, features = frozen.features(images)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(frozen(images), logits)
    assert len(features) == 9
    for name, value in zip(taps, features, strict=True):
        torch.testing.assert_close(value, seen[name], rtol=1e-4, atol=1e-4)


def test_forward_runs_no_batch_norm() -> None:
    frozen = teacher()
    called = []
    for layer in frozen.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(lambda *_: called.append(1))
    frozen(noise(*IMAGES))
    assert called == []
    frozen.statistics(noise(*IMAGES))
    assert len(called) == 7


# -- frozen -------------------------------------------------------------------------------


def test_training_mode_does_not_reach_the_teacher() -> None:
    frozen = teacher()
    parent = nn.ModuleList([frozen]).train()
    assert parent.training
    assert frozen.train() is frozen
    assert not any(module.training for module in frozen.modules())


def test_the_given_network_stays_as_it_is() -> None:
    original = network().train()
    before = copy.deepcopy(original.state_dict())
    frozen = FrozenTeacher(original, [])
    frozen.statistics(noise(*IMAGES))
    assert original.training
    assert all(parameter.requires_grad for parameter in original.parameters())
    assert all(torch.equal(v, before[name]) for name, v in original.state_dict().items())
    assert not {id(p) for p in original.parameters()} & {id(p) for p in frozen.parameters()}


def test_running_statistics_never_move_and_parameters_take_no_gradient() -> None:
    frozen = teacher().train()
    before = copy.deepcopy(frozen.state_dict())
    images = noise(*IMAGES).requires_grad_()
    distance(frozen.statistics(images)).backward()
    frozen(images).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in frozen.parameters())
    assert images.grad is not None


def test_copies_are_independent_and_compute_the_same() -> None:
    frozen = teacher()
    images = noise(*IMAGES)
    copied = copy.deepcopy(frozen)
    assert torch.equal(copied(images), frozen(images))
    assert torch.equal(distance(copied.statistics(images)), distance(frozen.statistics(images)))
    before = frozen(images)
    with torch.no_grad():
        for value in copied.state_dict().values():
            value.zero_()
    assert torch.equal(frozen(images), before)
    assert not any(module.training for module in copied.modules())


def test_the_teacher_moves_as_a_whole() -> None:
    moved = teacher().to("meta")
    images = torch.empty(IMAGES, device="meta")
    logits, statistics = moved.statistics(images)
    assert logits.device.type == moved(images).device.type == "meta"
    assert {value.device.type for layer in statistics for value in layer} == {"meta"}


def test_doubles_and_channels_last_compute_the_same() -> None:
    frozen, images = teacher(), noise(*IMAGES)
    expected = distance(frozen.statistics(images))
    last = copy.deepcopy(frozen).to(memory_format=torch.channels_last)
    value = distance(last.statistics(images.contiguous(memory_format=torch.channels_last)))
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)
    double = distance(frozen.double().statistics(images.double()))
    torch.testing.assert_close(double.float(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_statistics_compile_into_one_graph_with_the_same_gradients() -> None:
    frozen = teacher()
    compiled = torch.compile(
        lambda x: distance(frozen.statistics(x)), fullgraph=True, backend="aot_eager"
    )
    gradients = []
    for function in (compiled, lambda x: distance(frozen.statistics(x))):
        images = noise(*IMAGES).requires_grad_()
        function(images).backward()
        gradients.append(images.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


# -- refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layers",
    [[nn.ReLU()], [nn.BatchNorm2d(4, track_running_stats=False)]],
    ids=["no BatchNorm", "no running statistics"],
)
def test_a_network_without_batch_norm_statistics_is_refused(layers: list[nn.Module]) -> None:
    with pytest.raises(ModelError, match="Sequential has no BatchNorm2d with running"):
        FrozenTeacher(nn.Sequential(nn.Conv2d(3, 4, 1), *layers), [])


def test_an_unknown_tap_is_refused() -> None:
    with pytest.raises(ModelError, match="no node 'layer9'"):
        FrozenTeacher(network(), ["layer9"])


def test_batch_norms_that_met_no_image_are_told_from_others() -> None:
    network = CifarResNet(8, 10, width=4).eval()
    assert batch_norms_are_new(trace(network))
    last = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)][-1]
    assert last.running_var is not None
    last.running_var[0] = 0.5
    assert not batch_norms_are_new(trace(network))
