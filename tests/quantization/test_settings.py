"""The settings refuse what no quantizer could do, where they are constructed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from hast_lightning.errors import ConfigurationError
from hast_lightning.quantization.axes import Placement, QuantizerSettings, Ranges, Rounding
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.fake_quant import (
    WeightQuantizer,
    activation_quantizers,
    quantized_layers,
)
from hast_lightning.quantization.learned import LSQ
from hast_lightning.quantization.nearest import Nearest
from hast_lightning.quantization.placement import Integer, Simulated
from hast_lightning.quantization.ranges import Grid
from hast_lightning.quantization.search import LeastSquares, MinMax
from hast_lightning.quantization.settings import LayerBits, QuantizerConfig

ALLOWED = "(at least [12] and at most 8, or 32 for floating point|an integer)"


@pytest.mark.parametrize("bits", range(2, 9))
def test_two_to_eight_bits_are_allowed(bits: int) -> None:
    settings = QuantizerConfig(weight_bits=bits, activation_bits=10 - bits)
    assert (settings.weight_bits, settings.activation_bits) == (bits, 10 - bits)


# Weights of one bit are a sign each: test_binary.py.
WRONG = [-3, 0, 9, 16, 31, 3.0, "3", True, float("nan")]


@pytest.mark.parametrize(
    ("field", "bits"),
    [
        *((field, bits) for field in ("bits", "weight_bits", "activation_bits") for bits in WRONG),
        *(("bits", 1), ("activation_bits", 1)),
    ],
)
def test_other_bit_widths_are_refused_by_name(field: str, bits: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"^quantizer\.{field}={bits!r} must be {ALLOWED}$"
    ):
        QuantizerConfig(**{field: bits})


@pytest.mark.parametrize("spelled", [32, None])
def test_floating_point_is_32_however_it_is_spelled(spelled: int | None) -> None:
    weights, activations = (
        QuantizerConfig(weight_bits=4, activation_bits=spelled),
        QuantizerConfig(weight_bits=spelled, activation_bits=4),
    )
    assert (weights.activation_bits, str(weights.widths)) == (32, "W4, activations in float")
    assert (activations.weight_bits, str(activations.widths)) == (32, "A4, weights in float")


@pytest.mark.parametrize("both", [{"bits": 32}, {"weight_bits": None, "activation_bits": 32}])
def test_both_in_floating_point_quantize_nothing_but_single_layers(both: dict[str, Any]) -> None:
    nothing = QuantizerConfig(**both, overrides=[LayerBits("a", 32)])
    assert nothing.floating and not nothing.mixed and nothing.name == "nothing quantized"
    assert {"ranges", "rounding", "placement", "overrides"} <= set(nothing.unused())
    one_layer = QuantizerConfig(**both, overrides=[LayerBits("a", 4)])
    assert one_layer.mixed and not (one_layer.floating or one_layer.unused())


def test_ends_of_8_bits_are_mixed_only_where_the_others_have_fewer() -> None:
    assert QuantizerConfig(4, first_and_last_8bit=True).mixed
    assert not QuantizerConfig(8, first_and_last_8bit=True).mixed
    assert not QuantizerConfig(weight_bits=8, activation_bits=32, first_and_last_8bit=True).mixed


def test_bits_are_both() -> None:
    settings = QuantizerConfig(5, weight_bits=2)
    assert (settings.weight_bits, settings.activation_bits) == (5, 5)


def test_an_unknown_gradient_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"gradient='lsq' .*clipped, pass_through"):
        QuantizerConfig(gradient="lsq")


@pytest.mark.parametrize("momentum", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_a_momentum_that_is_no_average_is_refused(momentum: float) -> None:
    with pytest.raises(ConfigurationError, match=rf"^quantizer\.momentum={momentum} "):
        QuantizerConfig(momentum=momentum)


def test_a_placement_that_needs_zero_is_refused_without_it() -> None:
    message = r"^quantizer\.include_zero=false: .* placement=integer .* every range must contain$"
    with pytest.raises(ConfigurationError, match=message):
        QuantizerConfig(placement=Integer())
    assert QuantizerConfig(placement=Integer(), include_zero=True).placement.needs_zero


@pytest.mark.parametrize(
    ("field", "value"), [("ranges", "mse"), ("rounding", LSQ()), ("placement", Nearest())]
)
def test_an_axis_that_is_none_is_refused_and_not_ignored(field: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"^quantizer\.{field}=\S+ is no .*quantization"):
        QuantizerConfig(**{field: value})


@pytest.mark.parametrize("bits", [-1, 0, 9, 4.0, "4"])
@pytest.mark.parametrize("field", ["weight_bits", "activation_bits"])
def test_bits_of_single_layers_are_checked_too(field: str, bits: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"'conv1': {field}={bits!r} must be {ALLOWED}$"):
        LayerBits("conv1", **{field: bits})


def test_an_override_that_changes_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'conv1' sets neither weight_bits nor activation"):
        LayerBits("conv1")


# --- the three axes --------------------------------------------------------------------------


def test_in_python_the_axes_are_those_of_the_papers() -> None:
    settings = QuantizerConfig()
    assert [type(axis) for axis in (settings.ranges, settings.rounding, settings.placement)] == [
        MinMax,
        Nearest,
        Simulated,
    ]


def nothing(rows: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Find ranges without width, at zero."""
    zeros = torch.zeros(len(rows), 1)
    return zeros, zeros


@dataclass(eq=False, repr=False)
class ToZero(Rounding):
    """Makes every weight zero, which no other rounding does."""

    kind: str = "to_zero"

    def weight_quantizer(
        self, ranges: Ranges, bits: int, weight: Tensor, settings: QuantizerSettings
    ) -> WeightQuantizer:
        """Return a quantizer with a range that is far from every weight."""
        return WeightQuantizer(
            bits, True, find=lambda rows, grid: (rows[:, :1] * 0, rows[:, :1] * 0)
        )


@dataclass(eq=False, repr=False)
class BehindLayers(Placement):
    """Quantizes what layers put out."""

    kind: str = "layers"

    def values(self, student: fx.GraphModule) -> list[fx.Node]:
        """Return the calls of layers with weights."""
        layers = (nn.Conv2d, nn.Linear)
        return [
            node
            for node in student.graph.nodes
            if node.op == "call_module"
            and isinstance(student.get_submodule(str(node.target)), layers)
        ]


@pytest.mark.parametrize(
    ("chosen", "name"),
    [
        ({"ranges": LSQ()}, "lsq"),
        ({"ranges": LeastSquares(), "placement": Integer(), "include_zero": True}, "mse integer"),
        ({"rounding": ToZero(), "placement": BehindLayers()}, "minmax to_zero layers"),
    ],
)
def test_a_quantizer_is_named_after_its_ranges_and_what_the_papers_do_not_do(
    chosen: dict[str, Any], name: str
) -> None:
    assert QuantizerConfig(**chosen).name == name


def test_each_axis_is_chosen_for_itself() -> None:
    """The user's own rounding and placement work together with any ranges."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4, 5)).eval()
    settings = QuantizerConfig(3, rounding=ToZero(), placement=BehindLayers())
    student = convert(network, settings)
    for _, layer in quantized_layers(student):
        assert layer.weight_quantizer(layer.weight).abs().max() < 1e-6
    names = [node.name for node in student.graph.nodes]
    assert len(activation_quantizers(student)) == 2
    for layer in ("_0", "_3"):
        assert names[names.index(layer) + 1].startswith("activation_quantizers")
