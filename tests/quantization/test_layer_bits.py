"""Bits layer by layer: overrides by name, the first and the last layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from hast_lightning.errors import ConfigurationError, ModelError
from hast_lightning.models.resnet import CifarResNet
from hast_lightning.quantization.axes import Ranges
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.fake_quant import quantized_layers
from hast_lightning.quantization.learned import LSQ
from hast_lightning.quantization.placement import Integer
from hast_lightning.quantization.search import LeastSquares, MinMax, Percentile
from hast_lightning.quantization.settings import LayerBits, QuantizerConfig
from hast_lightning.quantization.size import float_bytes, quantized_bytes
from hast_lightning.quantization.structure import list_calls


def bits_of(network: nn.Module, settings: QuantizerConfig) -> tuple[dict[str, int], dict[str, int]]:
    """Bits of the weights of each layer, and of each quantized value."""
    student = convert(network.eval(), settings)
    layers = {name: layer.weight_quantizer for name, layer in quantized_layers(student)}
    values = dict(student.get_submodule("activation_quantizers").named_children())
    # The grid that is rounded to is that of the bits which are reported.
    for quantizer in (*layers.values(), *values.values()):
        assert quantizer.grid.bits == quantizer.bits  # type: ignore[union-attr]
    return (
        {name: quantizer.bits for name, quantizer in layers.items()},
        {name: quantizer.bits for name, quantizer in values.items()},  # type: ignore[misc]
    )


def layer_names(network: nn.Module) -> set[str]:
    return {n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def differing(bits: dict[str, int], usual: int) -> dict[str, int]:
    return {name: value for name, value in bits.items() if value != usual}


def resnet8() -> nn.Module:
    return CifarResNet(8, 5, width=4)


def settings(**options: Any) -> QuantizerConfig:
    return QuantizerConfig(weight_bits=3, activation_bits=4, **options)


def deployed(**options: Any) -> QuantizerConfig:
    return settings(include_zero=True, placement=Integer(), **options)


@pytest.mark.parametrize("ranges", [MinMax, LSQ])
def test_without_overrides_all_are_alike(ranges: type[Ranges]) -> None:
    weights, activations = bits_of(resnet8(), settings(ranges=ranges()))
    assert set(weights.values()) == {3}
    assert set(activations.values()) == {4}


@pytest.mark.parametrize("ranges", [LeastSquares, LSQ])
def test_a_pattern_sets_weights_and_what_the_layers_take_in(ranges: type[Ranges]) -> None:
    overrides = [LayerBits("layer2.*", 6), LayerBits("layer2.0.conv2", None, 7)]
    weights, activations = bits_of(resnet8(), settings(ranges=ranges(), overrides=overrides))
    assert differing(weights, 3) == {"layer2.0.conv1": 6, "layer2.0.conv2": 6}
    assert differing(activations, 4) == {"layer2_0_relu1": 7}


def test_the_last_entry_that_matches_counts() -> None:
    overrides = [LayerBits("*", 5, 5), LayerBits("*conv1", 2), LayerBits("layer1.*", 7)]
    weights, activations = bits_of(resnet8(), settings(overrides=overrides))
    assert weights == {
        "conv1": 2,
        "layer1.0.conv1": 7,
        "layer1.0.conv2": 7,
        **{f"layer{i}.0.conv1": 2 for i in (2, 3)},
        **{f"layer{i}.0.conv2": 5 for i in (2, 3)},
        "linear": 5,
    }
    assert set(activations.values()) == {5}


def test_one_number_for_both_counts_where_there_is_something_to_quantize() -> None:
    overrides = [LayerBits("conv1", bits=8), LayerBits("layer2.*", 6, bits=7)]
    weights, activations = bits_of(resnet8(), settings(overrides=overrides))
    # The image is not quantized, and so nothing that the first layer takes in.
    assert differing(weights, 3) == {"conv1": 8, "layer2.0.conv1": 6, "layer2.0.conv2": 6}
    assert differing(activations, 4) == {"layer1_0_relu2": 7, "layer2_0_relu1": 7}


class Branching(nn.Module):
    """One value that two layers take in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.other = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.one(x) + self.other(x)


@pytest.mark.parametrize(("asked", "given"), [(2, 4), (4, 4), (8, 8)])
def test_a_value_has_the_most_bits_that_a_layer_asks_for(asked: int, given: int) -> None:
    chosen = settings(overrides=[LayerBits("one", None, asked)])
    assert bits_of(Branching(), chosen) == ({"stem": 3, "one": 3, "other": 3}, {"relu": given})


def test_a_value_that_goes_many_ways_through_a_network_is_followed_once() -> None:
    """Each unit of a ShuffleNet splits its values into two: 2^16 ways through all of them."""
    network = torchvision.models.shufflenet_v2_x0_5(num_classes=5)
    weights, activations = bits_of(network, settings(first_and_last_8bit=True))
    assert weights.keys() == layer_names(network)
    assert differing(weights, 3) == {"conv1.0": 8, "fc": 8}
    assert differing(activations, 4) == {"conv5_2": 8}


class Split(nn.Module):
    """Half of a quantized value goes through a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 4, 1), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, other = F.relu(self.stem(x)).chunk(2, 1)
        return self.one(one) + other


def test_a_part_of_a_value_has_the_bits_of_the_whole() -> None:
    calls = list_calls(convert(Split().eval(), settings()), (), torch.zeros(1, 3, 6, 6))
    found = {call.name: call.input_bits for call in calls if call.weight_bits}
    assert found == {"stem": 32, "one": 4}


# --- floating point ---------------------------------------------------------------------------


def test_what_has_32_bits_is_left_as_it_is() -> None:
    weights, activations = bits_of(resnet8(), QuantizerConfig(weight_bits=4, activation_bits=32))
    assert (set(weights.values()), activations) == ({4}, {})
    weights, activations = bits_of(resnet8(), QuantizerConfig(weight_bits=32, activation_bits=4))
    assert (weights, set(activations.values())) == ({}, {4})


def test_a_single_layer_is_left_in_floating_point() -> None:
    overrides = [LayerBits("linear", 32, 32), LayerBits("conv1", 32, 32)]
    weights, activations = bits_of(resnet8(), settings(overrides=overrides))
    assert {"conv1", "linear"} == {"conv1", *layer_names(resnet8())} - weights.keys()
    assert "layer3_0_relu2" not in activations
    assert len(activations) == 6
    student = convert(resnet8().eval(), settings(overrides=overrides))
    assert type(student.get_submodule("linear")) is nn.Linear


def test_a_value_stays_in_floating_point_where_one_layer_wants_it_so() -> None:
    _, activations = bits_of(Branching(), settings(overrides=[LayerBits("stem", 4)]))
    assert activations == {"relu": 4}
    _, activations = bits_of(Branching(), settings(overrides=[LayerBits("one", None, 32)]))
    assert activations == {}


def test_the_first_and_the_last_have_8_bits_only_where_others_are_quantized() -> None:
    chosen = QuantizerConfig(weight_bits=3, activation_bits=32, first_and_last_8bit=True)
    weights, activations = bits_of(resnet8(), chosen)
    assert differing(weights, 3) == {"conv1": 8, "linear": 8}
    assert activations == {}


def test_overrides_that_leave_nothing_to_quantize_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^quantizer\.overrides leaves all .* floating"):
        convert(resnet8(), settings(overrides=[LayerBits("*", 32, 32)]))


def test_a_network_without_activation_functions_has_weights_to_quantize() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    with pytest.raises(ModelError, match="has no activation function"):
        convert(network, settings())
    student = convert(network, QuantizerConfig(weight_bits=4, activation_bits=None))
    assert len(quantized_layers(student)) == 1


# --- the first and the last ------------------------------------------------------------------


def test_the_first_and_the_last_layer_as_the_paper_places_quantizers() -> None:
    weights, activations = bits_of(resnet8(), settings(first_and_last_8bit=True))
    assert differing(weights, 3) == {"conv1": 8, "linear": 8}
    # The image is not quantized there; the last layer takes in the pooled last ReLU.
    assert differing(activations, 4) == {"layer3_0_relu2": 8}


def test_the_first_and_the_last_layer_of_a_deployable_student() -> None:
    weights, activations = bits_of(resnet8(), deployed(first_and_last_8bit=True))
    assert differing(weights, 3) == {"conv1": 8, "linear": 8}
    assert differing(activations, 4) == {"images": 8, "pool": 8}


def test_several_layers_may_be_first_and_last() -> None:
    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d, self.e = (nn.Conv2d(3, 3, 1) for _ in range(5))

        def forward(self, x: Tensor) -> Tensor:
            inner = F.relu(self.c(F.relu(self.a(x) + self.b(x))))
            return self.d(inner) * F.sigmoid(self.e(inner))

    weights, _ = bits_of(Parallel(), settings(first_and_last_8bit=True))
    assert weights == {"a": 8, "b": 8, "c": 3, "d": 8, "e": 8}


def test_an_override_counts_more_than_the_switch() -> None:
    chosen = settings(
        first_and_last_8bit=True, overrides=[LayerBits("conv1", 5), LayerBits("linear", 2, 2)]
    )
    weights, activations = bits_of(resnet8(), chosen)
    assert differing(weights, 3) == {"conv1": 5, "linear": 2}
    assert differing(activations, 4) == {"layer3_0_relu2": 2}


def test_first_and_last_of_mobilenet() -> None:
    network = torchvision.models.mobilenet_v2(weights=None, num_classes=5)
    weights, _ = bits_of(network, settings(first_and_last_8bit=True))
    assert differing(weights, 3) == {"features.0.0": 8, "classifier.1": 8}


# --- refusals --------------------------------------------------------------------------------


def test_a_pattern_that_matches_nothing_is_refused_with_some_names() -> None:
    chosen = settings(overrides=[LayerBits("layer9.*", 8)])
    with pytest.raises(ConfigurationError) as caught:
        convert(resnet8(), chosen)
    message = str(caught.value)
    assert message.startswith("quantizer.overrides: 'layer9.*' matches no convolution or linear")
    assert message.endswith(
        "some of their names: conv1, layer1.0.conv1, layer1.0.conv2, layer2.0.conv1, "
        "layer2.0.conv2, layer3.0.conv1"
    )


def test_the_names_of_a_large_network_are_few() -> None:
    network = torchvision.models.mobilenet_v2(weights=None)
    with pytest.raises(ConfigurationError) as caught:
        convert(network, settings(overrides=[LayerBits("x", 8)]))
    assert str(caught.value).count(",") == 5
    assert len(str(caught.value)) < 300


def test_bits_of_a_value_that_is_not_quantized_are_refused() -> None:
    overrides = [LayerBits("conv1", None, 8)]
    with pytest.raises(
        ConfigurationError, match=r"'conv1' sets activation_bits=8, but .* not quan"
    ):
        convert(resnet8(), settings(overrides=overrides))
    _, activations = bits_of(resnet8(), deployed(overrides=overrides))
    assert activations["images"] == 8


# --- size ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranges", [MinMax, LeastSquares, Percentile, LSQ])
def test_the_size_counts_each_layers_own_bits(ranges: type[Ranges]) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5, 7, bias=False)
    )
    chosen = settings(ranges=ranges(), overrides=[LayerBits("3", 6, 8)])
    size = quantized_bytes(convert(network, chosen), float_bytes(network))
    # 135 weights of 3 bits and 35 of 6, 5 biases, and 13 ranges of 5 bytes.
    assert size == 51 + 27 + 4 * 5 + 5 * (5 + 7 + 1)


def test_the_size_counts_what_is_in_floating_point_as_such() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5, 7, bias=False)
    )
    before = float_bytes(network)
    weights_alone = convert(network, QuantizerConfig(weight_bits=4, activation_bits=32))
    # 135 and 35 weights of 4 bits, 5 biases, and 12 ranges of 5 bytes.
    assert quantized_bytes(weights_alone, before) == 68 + 18 + 4 * 5 + 5 * 12
    one_layer = convert(network, settings(overrides=[LayerBits("0", 32)]))
    # 35 weights of 3 bits, 135 and 5 biases in floats, and 8 ranges.
    assert quantized_bytes(one_layer, before) == 14 + 4 * (135 + 5) + 5 * (7 + 1)
