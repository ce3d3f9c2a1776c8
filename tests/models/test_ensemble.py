"""Several networks as one teacher: its answers, its nodes, and who may teach together."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from hast_lightning.core.batch import Batch, Progress, Seen
from hast_lightning.core.ensemble import Ensemble, graphs_of
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ModelError
from hast_lightning.graph.outputs import mark_maps
from hast_lightning.graph.tracing import trace
from hast_lightning.models.ensemble import EnsembleTeacher, teacher_of, with_teachers
from hast_lightning.models.resnet import CifarResNet
from hast_lightning.models.teacher import FrozenTeacher
from hast_lightning.terms.bns import BNS
from hast_lightning.terms.channel_attention import ChannelAttention

SHAPE = (3, 16, 16)


def network(seed: int, depth: int = 8) -> PretrainedNetwork:
    """A network whose BatchNorms are far from the identity."""
    torch.manual_seed(seed)
    made = CifarResNet(depth, 5).eval()
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
    return PretrainedNetwork(made, f"n{seed}", SHAPE, 5, (0.5,) * 3, (0.5,) * 3, f"sum{seed}")


def together(*others: PretrainedNetwork) -> PretrainedNetwork:
    return with_teachers(network(0), {f"t{i}": each for i, each in enumerate(others, start=1)})


def images() -> Tensor:
    return torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(5))


# -- answers ------------------------------------------------------------------------------


def test_alone_it_is_the_single_teacher_bit_for_bit() -> None:
    single, ensemble = FrozenTeacher(network(0)), EnsembleTeacher(network(0))
    names = [node.name for node in single.graph_module.graph.nodes][3:9:2]
    for unfolded in (False, True):
        one = single.trace(images(), names, unfolded=unfolded)
        other = ensemble.trace(images(), names, unfolded=unfolded)
        assert torch.equal(one.logits, other.logits)
        assert list(one.values) == list(other.values) == names
        assert all(torch.equal(one.values[name], other.values[name]) for name in names)


def test_a_network_that_teaches_alone_gets_no_ensemble() -> None:
    assert type(teacher_of(network(0))) is FrozenTeacher
    assert isinstance(teacher_of(together(network(1))), EnsembleTeacher)


@torch.no_grad()
def test_answers_are_those_of_the_members_and_the_output_their_mixture() -> None:
    pretrained = together(network(1), network(2, depth=14))
    teacher = EnsembleTeacher(pretrained)
    assert isinstance(teacher, Ensemble) and not isinstance(FrozenTeacher(pretrained), Ensemble)
    assert teacher.names == ("model", "t1", "t2")
    members = [pretrained, *pretrained.teachers.values()]
    expected = torch.stack([each.network(images()) for each in members])
    torch.testing.assert_close(teacher.answers(images()), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(teacher(images()), expected.mean(0), rtol=1e-4, atol=1e-4)
    teacher.weights.copy_(torch.tensor([0.0, 1.0, 0.5]))
    mixed = (expected[1] + 0.5 * expected[2]) / 1.5
    torch.testing.assert_close(teacher(images()), mixed, rtol=1e-4, atol=1e-4)


def test_nodes_of_the_others_have_their_name_before_them() -> None:
    pretrained = together(network(1))
    teacher = EnsembleTeacher(pretrained)
    names = ("t1/layer1_0_bn2", "layer1_0_bn2")
    values = teacher.trace(images(), names).values
    assert tuple(values) == names
    for name, member in zip(names, (pretrained.teachers["t1"], pretrained), strict=True):
        own = FrozenTeacher(member).trace(images(), [name.rpartition("/")[2]]).values
        assert torch.equal(values[name], own["layer1_0_bn2"])
    with pytest.raises(ModelError, match="no network teaches by the name 't2'"):
        teacher.trace(images(), ("t2/layer1_0_bn2",))
    with pytest.raises(ModelError, match="no node 'strange'"):
        teacher.trace(images(), ("t1/strange",))


def test_it_never_changes_and_its_weights_take_no_gradient() -> None:
    teacher = EnsembleTeacher(together(network(1))).train()
    assert not any(module.training for module in teacher.modules())
    before = copy.deepcopy(teacher.state_dict())
    shown = images().requires_grad_()
    teacher(shown).sum().backward()
    assert shown.grad is not None
    assert not list(filter(lambda p: p.requires_grad, teacher.parameters()))
    assert not teacher.weights.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_the_checksum_covers_every_member() -> None:
    alone = network(0)
    assert alone.teaching_checksum == alone.checksum
    sums = {each.teaching_checksum for each in (alone, together(network(1)), together(network(2)))}
    assert len(sums) == 3


# -- terms --------------------------------------------------------------------------------


def seen_by(teacher: FrozenTeacher, term: BNS) -> Seen:
    needs = term.bind(teacher, teacher)
    found = teacher.trace(images(), needs.teacher, unfolded=needs.batch_norms)
    return Seen(Batch(images()), found, None, Progress("any", 1, 1))


def test_statistics_are_matched_to_every_member_which_count_alike() -> None:
    members = network(0), network(1), network(2, depth=14)
    term = BNS()
    each = [term(seen_by(FrozenTeacher(member), term)) for member in members]
    found = term(seen_by(EnsembleTeacher(together(*members[1:])), term))
    # Not the mean over all layers: a deep member has more of them.
    torch.testing.assert_close(found, torch.stack(each).mean())
    assert len({float(loss) for loss in each}) == 3


def test_a_term_pairs_the_student_with_the_network_that_it_was_made_of() -> None:
    alone, ensemble = FrozenTeacher(network(0)), EnsembleTeacher(together(network(1, depth=14)))
    terms = [ChannelAttention(), ChannelAttention()]
    needs = [term.bind(t, alone) for term, t in zip(terms, (alone, ensemble), strict=True)]
    assert needs[0] == needs[1]
    assert set(graphs_of(ensemble)) == {"", "t1/"}
    assert graphs_of(alone) == {"": alone.graph_module}


# -- who may teach together ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"input_shape": (3, 32, 32)}, "inputs of shape (3, 32, 32)"),
        ({"num_classes": 10}, "a number of classes of 10"),
        ({"mean": (0.4, 0.5, 0.5)}, "inputs normalized with mean (0.4, 0.5, 0.5)"),
        ({"std": (1.0, 1.0, 1.0)}, "inputs normalized with deviation (1.0, 1.0, 1.0)"),
        ({"modality": "features"}, "inputs of modality features"),
        ({"class_names": tuple("edcba")}, "classes in the order ['e', 'd', 'c', 'b', 'a']"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(change: dict[str, object], told: str) -> None:
    own = replace(network(0), class_names=tuple("abcde"))
    with pytest.raises(ModelError) as caught:
        with_teachers(own, {"odd": replace(network(1), **change)})  # type: ignore[arg-type]
    assert str(caught.value).startswith("teachers.odd: the network n1 has ")
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_means_that_differ_by_rounding_are_alike() -> None:
    close = replace(network(1), mean=(0.5 + 1e-9,) * 3)
    assert list(with_teachers(network(0), {"close": close}).teachers) == ["close"]


def test_networks_that_put_out_maps_are_refused() -> None:
    maps = trace(network(0).network)
    mark_maps(maps)
    own = replace(network(0), network=maps)
    for pretrained, other in ((own, network(1)), (network(1), own)):
        with pytest.raises(ModelError, match="puts out maps"):
            with_teachers(pretrained, {"odd": other})
