"""The frozen teacher: the values of its nodes, folded and unfolded, and that it stays."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from hast_lightning.core.batch import Trace
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ModelError
from hast_lightning.graph.blocks import find_taps
from hast_lightning.graph.tracing import batch_norm_inputs, trace
from hast_lightning.models.resnet import CifarResNet
from hast_lightning.models.teacher import FrozenTeacher, batch_norms_are_new

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


def frozen(network: nn.Module) -> FrozenTeacher:
    return FrozenTeacher(PretrainedNetwork(network, "any", (3, 16, 16), 5, (0.5,), (0.5,), ""))


def teacher() -> FrozenTeacher:
    return frozen(network())


def batch_norm_nodes(teacher: FrozenTeacher) -> list[str]:
    return [node for node, _ in batch_norm_inputs(teacher.graph_module)]


def unfolded(teacher: FrozenTeacher, images: Tensor) -> Trace:
    return teacher.trace(images, batch_norm_nodes(teacher), unfolded=True)


def total(trace: Trace) -> Tensor:
    """A scalar in which every value and the logits count."""
    values = [value.square().mean() for value in trace.values.values()]
    return torch.stack(values).sum() + trace.logits.logsumexp(1).sum()


# -- logits and features ------------------------------------------------------------------


@torch.no_grad()
def test_folded_logits_and_features_are_those_of_the_network() -> None:
    original = network(20)
    taps = find_taps(trace(original))
    teacher = frozen(original)
    seen: dict[str, Tensor] = {}
    for name in taps:
        layer = original.get_submodule(name.replace("_", "."))
        layer.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    images = noise(*IMAGES)
    expected = original(images)
    logits, features, _ = teacher.trace(images, taps)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(teacher(images), logits)
    assert list(features) == taps
    for name, value in features.items():
        torch.testing.assert_close(value, seen[name], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_unfolded_the_teacher_is_the_network_itself() -> None:
    original = network()
    teacher = frozen(original)
    norms = [layer for layer in original.modules() if isinstance(layer, nn.BatchNorm2d)]
    seen: list[Tensor] = []
    for norm in norms:
        norm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    images = noise(*IMAGES)
    logits, values, _ = unfolded(teacher, images)
    assert torch.equal(logits, original(images))
    assert len(seen) == 7
    assert all(map(torch.equal, seen, values.values()))


@torch.no_grad()
def test_what_a_folded_batch_norm_takes_in_is_that_of_the_network() -> None:
    """As a tap of a convolution wants it, with and without identities behind it."""
    layers = (nn.Conv2d(3, 4, 3), nn.Dropout(), nn.Identity(), nn.BatchNorm2d(4), nn.ReLU())
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 14 * 14, 5)).eval()
    network[3].running_mean.normal_()  # type: ignore[operator,union-attr]
    network[3].running_var.uniform_(2, 3)  # type: ignore[operator,union-attr]
    teacher, images = frozen(network), noise(*IMAGES)
    for number, name in enumerate(("_0", "_1", "_2", "_3")):
        found = teacher.trace(images, [name]).values[name]
        torch.testing.assert_close(found, network[: number + 1](images), rtol=1e-5, atol=1e-5)


def test_batch_norms_run_only_where_they_are_asked_for() -> None:
    frozen = teacher()
    called = []
    for layer in frozen.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(lambda *_: called.append(1))
    frozen(noise(*IMAGES))
    assert called == []
    unfolded(frozen, noise(*IMAGES))
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
    teacher = frozen(original)
    unfolded(teacher, noise(*IMAGES))
    assert original.training
    assert all(parameter.requires_grad for parameter in original.parameters())
    assert all(torch.equal(v, before[name]) for name, v in original.state_dict().items())
    assert not {id(p) for p in original.parameters()} & {id(p) for p in teacher.parameters()}


def test_running_statistics_never_move_and_parameters_take_no_gradient() -> None:
    frozen = teacher().train()
    before = copy.deepcopy(frozen.state_dict())
    images = noise(*IMAGES).requires_grad_()
    total(unfolded(frozen, images)).backward()
    frozen(images).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in frozen.parameters())
    assert images.grad is not None


def test_copies_are_independent_and_compute_the_same() -> None:
    frozen = teacher()
    images = noise(*IMAGES)
    before = frozen(images)  # a pass that is there already is copied too
    copied = copy.deepcopy(frozen)
    assert torch.equal(copied(images), before)
    assert torch.equal(total(unfolded(copied, images)), total(unfolded(frozen, images)))
    with torch.no_grad():
        for value in copied.state_dict().values():
            value.zero_()
    assert torch.equal(frozen(images), before)
    assert not copied(images).any()
    assert not any(module.training for module in copied.modules())


def test_the_teacher_moves_as_a_whole() -> None:
    moved = teacher()
    unfolded(moved, noise(*IMAGES))
    moved = moved.to("meta")
    images = torch.empty(IMAGES, device="meta")
    assert moved(images).device.type == "meta"
    logits, values, _ = unfolded(moved, images)
    assert {value.device.type for value in (logits, *values.values())} == {"meta"}


def test_doubles_and_channels_last_compute_the_same() -> None:
    frozen, images = teacher(), noise(*IMAGES)
    expected = total(unfolded(frozen, images))
    last = copy.deepcopy(frozen).to(memory_format=torch.channels_last)
    value = total(unfolded(last, images.contiguous(memory_format=torch.channels_last)))
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)
    double = total(unfolded(frozen.double(), images.double()))
    torch.testing.assert_close(double.float(), expected, rtol=1e-4, atol=1e-4)


def test_an_unknown_node_is_refused() -> None:
    with pytest.raises(ModelError, match="no node 'layer9'"):
        teacher().trace(noise(*IMAGES), ["layer9"])


def test_batch_norms_that_met_no_image_are_told_from_others() -> None:
    network = CifarResNet(8, 10, width=4).eval()
    assert batch_norms_are_new(trace(network))
    last = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)][-1]
    assert last.running_var is not None
    last.running_var[0] = 0.5
    assert not batch_norms_are_new(trace(network))
