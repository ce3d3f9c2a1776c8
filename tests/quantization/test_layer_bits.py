"""Bits layer by layer: overrides by name, the first and the last layer."""

from __future__ import annotations

import pytest
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from hast_lightning.errors import ConfigurationError
from hast_lightning.models.resnet import CifarResNet
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.fake_quant import quantized_layers
from hast_lightning.quantization.size import float_bytes, quantized_bytes
from hast_lightning.quantization.spec import LayerBits, QuantizationSpec


def bits_of(network: nn.Module, spec: QuantizationSpec) -> tuple[dict[str, int], dict[str, int]]:
    """Bits of the weights of each layer, and of each quantized value."""
    student = convert(network.eval(), spec)
    layers = {name: layer.weight_quantizer for name, layer in quantized_layers(student)}
    values = dict(student.get_submodule("activation_quantizers").named_children())
    # The grid that is rounded to is that of the bits which are reported.
    for quantizer in (*layers.values(), *values.values()):
        assert quantizer.grid.bits == quantizer.bits  # type: ignore[union-attr]
    return (
        {name: quantizer.bits for name, quantizer in layers.items()},
        {name: quantizer.bits for name, quantizer in values.items()},  # type: ignore[misc]
    )


def differing(bits: dict[str, int], usual: int) -> dict[str, int]:
    return {name: value for name, value in bits.items() if value != usual}


def resnet8() -> nn.Module:
    return CifarResNet(8, 5, width=4)


def deployed(**options: object) -> QuantizationSpec:
    return QuantizationSpec(3, 4, include_zero=True, deployable=True, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("ranges", ["minmax", "lsq"])
def test_without_overrides_all_are_alike(ranges: str) -> None:
    weights, activations = bits_of(resnet8(), QuantizationSpec(3, 4, ranges=ranges))
    assert set(weights.values()) == {3}
    assert set(activations.values()) == {4}


@pytest.mark.parametrize("ranges", ["mse", "lsq"])
def test_a_pattern_sets_weights_and_what_the_layers_take_in(ranges: str) -> None:
    overrides = (LayerBits("layer2.*", 6), LayerBits("layer2.0.conv2", None, 7))
    weights, activations = bits_of(
        resnet8(), QuantizationSpec(3, 4, ranges=ranges, overrides=overrides)
    )
    assert differing(weights, 3) == {"layer2.0.conv1": 6, "layer2.0.conv2": 6}
    assert differing(activations, 4) == {"layer2_0_relu1": 7}


def test_the_last_entry_that_matches_counts() -> None:
    overrides = (LayerBits("*", 5, 5), LayerBits("*conv1", 2), LayerBits("layer1.*", 7))
    weights, activations = bits_of(resnet8(), QuantizationSpec(3, 4, overrides=overrides))
    assert weights == {
        "conv1": 2,
        "layer1.0.conv1": 7,
        "layer1.0.conv2": 7,
        **{f"layer{i}.0.conv1": 2 for i in (2, 3)},
        **{f"layer{i}.0.conv2": 5 for i in (2, 3)},
        "linear": 5,
    }
    assert set(activations.values()) == {5}


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
    spec = QuantizationSpec(3, 4, overrides=(LayerBits("one", None, asked),))
    assert bits_of(Branching(), spec) == ({"stem": 3, "one": 3, "other": 3}, {"relu": given})


# --- the first and the last ------------------------------------------------------------------


def test_the_first_and_the_last_layer_as_the_paper_places_quantizers() -> None:
    weights, activations = bits_of(resnet8(), QuantizationSpec(3, 4, first_and_last_8bit=True))
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

    weights, _ = bits_of(Parallel(), QuantizationSpec(3, 4, first_and_last_8bit=True))
    assert weights == {"a": 8, "b": 8, "c": 3, "d": 8, "e": 8}


def test_an_override_counts_more_than_the_switch() -> None:
    spec = QuantizationSpec(
        3, 4, first_and_last_8bit=True, overrides=(LayerBits("conv1", 5), LayerBits("linear", 2, 2))
    )
    weights, activations = bits_of(resnet8(), spec)
    assert differing(weights, 3) == {"conv1": 5, "linear": 2}
    assert differing(activations, 4) == {"layer3_0_relu2": 2}


def test_first_and_last_of_mobilenet() -> None:
    network = torchvision.models.mobilenet_v2(weights=None, num_classes=5)
    weights, _ = bits_of(network, QuantizationSpec(3, 4, first_and_last_8bit=True))
    assert differing(weights, 3) == {"features.0.0": 8, "classifier.1": 8}


# --- refusals --------------------------------------------------------------------------------


def test_a_pattern_that_matches_nothing_is_refused_with_some_names() -> None:
    spec = QuantizationSpec(3, 4, overrides=(LayerBits("layer9.*", 8),))
    with pytest.raises(ConfigurationError) as caught:
        convert(resnet8(), spec)
    message = str(caught.value)
    assert message.startswith("quantizer.overrides: 'layer9.*' matches no convolution or linear")
    assert message.endswith(
        "some of their names: conv1, layer1.0.conv1, layer1.0.conv2, layer2.0.conv1, "
        "layer2.0.conv2, layer3.0.conv1"
    )


def test_the_names_of_a_large_network_are_few() -> None:
    network = torchvision.models.mobilenet_v2(weights=None)
    with pytest.raises(ConfigurationError) as caught:
        convert(network, QuantizationSpec(3, 4, overrides=(LayerBits("x", 8),)))
    assert str(caught.value).count(",") == 5
    assert len(str(caught.value)) < 300


def test_bits_of_a_value_that_is_not_quantized_are_refused() -> None:
    overrides = (LayerBits("conv1", None, 8),)
    with pytest.raises(
        ConfigurationError, match=r"'conv1' sets activation_bits=8, but .* not quan"
    ):
        convert(resnet8(), QuantizationSpec(3, 4, overrides=overrides))
    _, activations = bits_of(resnet8(), deployed(overrides=overrides))
    assert activations["images"] == 8


# --- size ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranges", ["minmax", "mse", "percentile", "lsq"])
def test_the_size_counts_each_layers_own_bits(ranges: str) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5, 7, bias=False)
    )
    spec = QuantizationSpec(3, 4, ranges=ranges, overrides=(LayerBits("3", 6, 8),))
    size = quantized_bytes(convert(network, spec), float_bytes(network))
    # 135 weights of 3 bits and 35 of 6, 5 biases, and 13 ranges of 5 bytes.
    assert size == 51 + 27 + 4 * 5 + 5 * (5 + 7 + 1)
