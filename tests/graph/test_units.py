from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torchvision.models import mobilenetv3

from hast_lightning.errors import ModelError
from hast_lightning.graph.tracing import trace
from hast_lightning.graph.units import Unit, extract, find_units, parameters_of
from tests.diffusion import loaded


class Residual(nn.Module):
    """A stem, a residual block, pooling and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.second(torch.relu(self.norm(self.first(x)))))
        return self.head(x.mean((2, 3)))


def traced(network: nn.Module) -> fx.GraphModule:
    return trace(network.eval())


def in_turn(units: Sequence[Unit], network: fx.GraphModule, inputs: dict[str, Tensor]) -> Tensor:
    """What the last unit puts out where each takes in what those before it do."""
    values = dict(inputs)
    for unit in units:
        values[unit.target] = extract(network, unit)(*(values[name] for name in unit.sources))
    return values[units[-1].target]


def test_a_residual_block_is_one_unit_and_single_layers_are_units_of_their_own() -> None:
    units = find_units(traced(Residual()))
    assert [unit.layers for unit in units] == [("stem.0",), ("first", "second"), ("head",)]
    # Behind the activation of the addition, and before what pools.
    assert units[1].target == units[2].source
    assert units[1].name == "first +1"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet18", 10), ("mobilenet_v2", 20)],
)
def test_units_together_are_the_network(name: str, expected: int) -> None:
    network = traced(getattr(torchvision.models, name)())
    units = find_units(network)
    assert len(units) == expected
    images = torch.randn(2, 3, 32, 32)
    value = images
    with torch.no_grad():
        for unit in units:
            value = extract(network, unit)(value)
        assert torch.equal(value, network(images))
    layers = [name for unit in units for name in unit.layers]
    assert sorted(layers) == sorted(
        name for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)
    )


def test_a_depthwise_layer_is_in_one_unit_with_the_pointwise_one_behind_it() -> None:
    units = find_units(traced(torchvision.models.mobilenet_v2()))
    assert units[1].layers == ("features.1.conv.0.0", "features.1.conv.1")


def test_an_inverted_residual_is_one_unit_with_and_without_a_skip() -> None:
    network = traced(torchvision.models.mobilenet_v2())
    blocks = [unit.layers for unit in find_units(network)]
    for number in (2, 3):
        prefix = f"features.{number}.conv"
        assert (f"{prefix}.0.0", f"{prefix}.1.0", f"{prefix}.2") in blocks


def test_identities_and_padding_between_its_layers_do_not_part_an_inverted_residual() -> None:
    """As timm has them: a dropout of nothing before activations, and asymmetric zeros."""
    layers = (
        *(
            nn.Conv2d(3, 6, 1),
            nn.BatchNorm2d(6),
            nn.Identity(),
            nn.ReLU6(),
            nn.ZeroPad2d((0, 1, 0, 1)),
        ),
        *(nn.Conv2d(6, 6, 3, 2, groups=6), nn.BatchNorm2d(6), nn.Identity(), nn.ReLU6()),
        *(nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4), nn.Identity()),
        *(nn.Conv2d(4, 4, 3), nn.ReLU()),
    )
    units = find_units(traced(nn.Sequential(*layers)))
    assert [unit.layers for unit in units] == [("0", "5", "9"), ("12",)]
    assert units[0].target == "_11"


def test_units_end_where_a_user_has_them_end() -> None:
    network = traced(torchvision.models.resnet18())
    ends = ["layer1.1.relu-2", "layer[34].1.relu-2"]
    units = find_units(network, ends=[end.replace("-2", "") for end in ends])
    assert [unit.layers[0] for unit in units] == ["conv1", "layer2.0.conv1", "layer4.0.conv1", "fc"]
    assert sum(len(unit.layers) for unit in units) == 21
    with torch.no_grad():
        value = images = torch.randn(2, 3, 32, 32)
        for unit in units:
            value = extract(network, unit)(value)
        assert torch.equal(value, network(images))


@pytest.mark.parametrize("end", ["layer1.0.conv1", "layer9*"])
def test_a_place_where_no_unit_may_end_is_refused(end: str) -> None:
    with pytest.raises(ModelError, match=re.escape(end)) as caught:
        find_units(traced(torchvision.models.resnet18()), ends=[end])
    assert "\n" not in str(caught.value)


def test_a_unit_shares_its_layers_with_the_network_and_has_no_others() -> None:
    network = traced(Residual())
    unit = extract(network, find_units(network)[1])
    own = {id(parameter) for parameter in unit.parameters()}
    assert own == {
        id(p) for m in (network.first, network.norm, network.second) for p in m.parameters()
    }  # type: ignore[union-attr]


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="no layer with weights"):
        find_units(traced(nn.Sequential(nn.Flatten(), nn.ReLU())))


def test_blocks_of_a_denoising_network_are_units_that_take_timestep_and_skip_beside() -> None:
    network = trace(loaded().network)
    assert len(find_units(network)) == 2  # the embedding lives on to the end
    units = find_units(network, timed=True)
    blocks = {unit.layers[0]: unit.sources for unit in units if len(unit.layers) > 1}
    assert blocks == {
        "network.down.first": ("network_stem", "network_time_2"),
        "network.middle.first": ("network_shrink", "network_time_2"),
        "network.up.first": ("add_3", "network_time_2", "add_1"),
    }
    inputs = torch.randn(2, 2, 8, 8)
    with torch.no_grad():
        assert torch.equal(in_turn(units, network, {"inputs": inputs}), network(inputs))
    layers = [name for unit in units for name in unit.layers]
    assert len(layers) == len(set(layers)) == 17


def test_a_normalization_behind_a_convolution_belongs_to_it() -> None:
    layers = (nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.Conv2d(4, 2, 3))
    units = find_units(traced(nn.Sequential(*layers)))
    assert [unit.target for unit in units] == ["_2", "_3"]
    # Elsewhere it stands before the layer that it belongs to.
    linear = (nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    assert [unit.target for unit in find_units(traced(nn.Sequential(*linear)))] == ["_0", "_2"]


def test_an_inverted_residual_whose_channels_are_scaled_is_one_unit_with_and_without_a_skip() -> (
    None
):
    block = mobilenetv3.InvertedResidualConfig
    settings = [block(8, 3, 16, outs, True, "HS", 2, 1, 1.0) for outs in (8, 16)]
    settings[1].input_channels = 8
    network = traced(mobilenetv3.MobileNetV3(settings, 32, num_classes=5))
    blocks = [unit.layers for unit in find_units(network)]
    for number in (1, 2):
        names = ("0.0", "1.0", "2.fc1", "2.fc2", "3.0")
        assert tuple(f"features.{number}.block.{name}" for name in names) in blocks


class Sized(nn.Module):
    """Asks for a size at the beginning or where it is needed, and uses it at the end."""

    def __init__(self, early: bool, of_batch: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 2, 3)
        self.head = nn.Linear(18 if of_batch else 12, 5)
        self.early, self.of_batch = early, of_batch

    def forward(self, x: Tensor) -> Tensor:
        size = (x.size(0), x.shape[-2:])
        features = torch.relu(self.second(torch.relu(self.first(x))))
        if not self.of_batch:
            return self.head(F.interpolate(features, size=size[1] if self.early else (12, 12)))
        return self.head(features.view(size[0] if self.early else features.size(0), -1))


@pytest.mark.parametrize("of_batch", [False, True])
def test_a_size_that_is_asked_for_early_keeps_no_unit_from_ending(of_batch: bool) -> None:
    early, late = (traced(Sized(each, of_batch)) for each in (True, False))
    found, expected = find_units(early), find_units(late)
    assert [unit.layers for unit in found] == [unit.layers for unit in expected]
    assert len(found) == 3
    images = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        assert torch.equal(in_turn(found, early, {"x": images}), early(images))


class Recurring(nn.Module):
    """A convolution with its BatchNorm that is called several times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.again = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for _ in range(3):
            x = self.again(x)
        return self.head(x.mean((2, 3)))


def test_a_layer_that_is_called_several_times_is_in_the_first_unit_that_calls_it() -> None:
    network = traced(Recurring())
    units = find_units(network)
    assert [unit.layers for unit in units] == [("stem",), ("again.0",), ("head",)]
    again, head = (set(layer.parameters()) for layer in (network.again, network.head))  # type: ignore[union-attr]
    assert parameters_of(units[:2], network, network) == again | set(network.stem.parameters())  # type: ignore[union-attr]
    own = set(extract(network, units[2]).parameters())
    assert own == again | head
    assert own - parameters_of(units[:2], network, network) == head


@pytest.mark.parametrize("missing", ["network.stem", "network.shrink", "add_3"])
def test_an_end_that_needs_others_before_it_names_them(missing: str) -> None:
    network = trace(loaded().network)
    with pytest.raises(ModelError, match=r"name .* as well") as caught:
        find_units(network, timed=True, ends=[missing])
    named = re.search("name (.*) as well", str(caught.value))
    assert named is not None
    units = find_units(network, timed=True, ends=[missing, *named[1].split(" and ")])
    assert missing.replace(".", "_") in [unit.target for unit in units]
    assert "\n" not in str(caught.value)
