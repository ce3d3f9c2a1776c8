"""Several outputs: joined at the end of a graph, and given back in their container."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hast_lightning.errors import ModelError
from hast_lightning.graph.heads import SEVERAL, head_of, restore_head
from hast_lightning.graph.outputs import puts_out_several
from hast_lightning.graph.tracing import expose
from hast_lightning.graph.units import extract, find_units
from hast_lightning.models.preparation import prepare
from hast_lightning.models.teacher import FrozenTeacher
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.fake_quant import activation_quantizers
from hast_lightning.quantization.placement import Integer
from hast_lightning.quantization.settings import QuantizerConfig
from tests.export.families import noise
from tests.several_outputs import SHAPE, backbone, boxes_and_scores, described, segmentation

NETWORKS = [backbone, segmentation, boxes_and_scores]


class Branching(nn.Module):
    """A residual block whose inner values heads take in as well."""

    def __init__(self, heads: Callable[[Any, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.stem, self.expand = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.project, self.first, self.second = (nn.Conv2d(i, 4, 1) for i in (8, 8, 4))
        self.deep = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(6)))
        self.heads = heads

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x).relu()
        inner = self.expand(x).relu()
        return self.heads(self, inner, x + self.project(self.depthwise(inner).relu()))


def main_first() -> nn.Module:
    return Branching(lambda n, inner, y: {"a": n.second(y), "b": n.first(n.deep(inner[:, :]))})


def inner_last() -> nn.Module:
    """The head of the inner value needs least, so its units are first."""
    return Branching(lambda n, inner, y: (n.second(y), n.deep(n.first(inner).repeat(1, 2, 1, 1))))


def shared_head() -> nn.Module:
    return Branching(lambda n, inner, y: [n.second(y), n.second(n.first(n.deep(inner)))])


def leaves(output: Any) -> list[Tensor]:
    items = output.values() if isinstance(output, dict) else output
    return [output] if isinstance(output, Tensor) else [e for i in items for e in leaves(i)]


@pytest.mark.parametrize("make", NETWORKS)
def test_a_network_with_several_outputs_is_one_of_values(make: Callable[[], nn.Module]) -> None:
    network, images = make(), noise(3, *SHAPE)
    pretrained = described(network)
    assert pretrained.outputs is not None and pretrained.regresses and not pretrained.denoises
    assert pretrained.num_classes == sum(pretrained.outputs.sizes)
    teacher = FrozenTeacher(pretrained)
    found, expected = teacher.trace(images).by_name(), leaves(network(images))
    for one, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(one.flatten(), other.flatten(), rtol=1e-4, atol=1e-5)
    student = convert(pretrained.network, QuantizerConfig())
    assert head_of(student) == SEVERAL
    restored = restore_head(student)
    assert not puts_out_several(restored)
    given, own = restored(images), network(images)
    assert type(given) is (dict if isinstance(own, dict) else tuple)
    assert not isinstance(own, dict) or list(given) == list(own)


@pytest.mark.parametrize("make", [*NETWORKS, main_first, inner_last, shared_head])
def test_units_are_those_of_each_output_in_turn(make: Callable[[], nn.Module]) -> None:
    pretrained = described(make())
    network = FrozenTeacher(pretrained).graph_module
    units = find_units(network)
    layers = [name for unit in units for name in unit.layers]
    assert sorted(layers) == sorted(
        name for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)
    )
    images = noise(2, *SHAPE)
    values = {next(iter(network.graph.nodes)).name: images}
    _, expected = expose(network, [unit.target for unit in units])(images)
    for unit, value in zip(units, expected, strict=True):
        values[unit.target] = extract(network, unit)(*(values[name] for name in unit.sources))
        torch.testing.assert_close(values[unit.target], value)


def test_units_of_an_output_that_needs_less_come_before_those_of_others() -> None:
    network = FrozenTeacher(
        described(Branching(lambda n, inner, y: {"out": n.second(y), "aux": n.first(inner)}))
    ).graph_module
    assert [unit.layers for unit in find_units(network)] == [
        *(("stem",), ("expand",), ("first",)),
        *(("depthwise", "project"), ("second",)),
    ]


def test_levels_of_a_pyramid_are_rebuilt_from_those_above() -> None:
    units = find_units(FrozenTeacher(described(backbone())).graph_module)
    found = {unit.layers: unit for unit in units}
    # Residual bodies stay whole; the finer level takes in the coarser one's value beside its own.
    assert list(found) == [
        ("body.stem",),
        ("body.deep",),
        ("fpn.inner_blocks.1.0",),
        ("fpn.layer_blocks.1.0",),
        ("fpn.inner_blocks.0.0",),
        ("fpn.layer_blocks.0.0",),
    ]
    assert found["fpn.inner_blocks.0.0",].source == found["body.stem",].target
    assert found["fpn.layer_blocks.0.0",].beside == (found["fpn.inner_blocks.1.0",].target,)


def test_outputs_alone_are_not_stored_as_integers() -> None:
    network = described(backbone()).network
    student = convert(network, QuantizerConfig(bits=8, include_zero=True, placement=Integer()))
    joint = student.graph.output_node().args[0]
    quantized = [str(n.target) for n in joint.all_input_nodes if "quantizers" in str(n.target)]  # type: ignore[union-attr]
    assert activation_quantizers(student) and not quantized


class Odd(nn.Module):
    """Puts out whatever the function makes of features."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.make = nn.Conv2d(3, 4, 1), make

    def forward(self, images: Tensor) -> Any:
        return self.make(self.layer(images))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: (x, x.argmax(1)), r"puts out 1 as torch.int64 of shape \(2, 16, 16\)"),
        (lambda x: {"a": x, "b": x[0]}, r"puts out b as torch.float32 of shape \(4, 16, 16\)"),
        (lambda x: (x, x + 1, 7), "beside them 2, which is of type int"),
        (lambda x: {1: x, 2: x + 1}, "whose keys are no texts"),
        (lambda x: {"a": {"b": x}, "a.b": x}, "or alike"),
    ],
)
def test_what_cannot_be_joined_is_refused(make: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        prepare(Odd(make).eval(), SHAPE, "odd")


def test_an_only_tensor_is_found_at_any_depth() -> None:
    prepared, channels = prepare(Odd(lambda x: {"a": [x, None]}).eval(), SHAPE, "odd")
    assert channels == 4 and not puts_out_several(prepared)
