"""The specification refuses what no quantizer could do, where it is constructed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from hast_lightning.config import LayerBitsConfig, QuantizerConfig
from hast_lightning.errors import ConfigurationError
from hast_lightning.quantization.spec import LayerBits, QuantizationSpec


@pytest.mark.parametrize("bits", range(2, 9))
def test_two_to_eight_bits_are_allowed(bits: int) -> None:
    spec = QuantizationSpec(weight_bits=bits, activation_bits=10 - bits)
    assert (spec.weight_bits, spec.activation_bits) == (bits, 10 - bits)


@pytest.mark.parametrize("bits", [-3, 0, 1, 9, 32, 3.0, "3", None, True, float("nan")])
@pytest.mark.parametrize("field", ["weight_bits", "activation_bits"])
def test_other_bit_widths_are_refused_by_name(field: str, bits: Any) -> None:
    fields: dict[str, Any] = {"weight_bits": 4, "activation_bits": 4, field: bits}
    with pytest.raises(ConfigurationError, match=rf"^{field}={bits} must be 2 to 8$"):
        QuantizationSpec(**fields)


def test_an_unknown_gradient_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"gradient='lsq' .*pass_through, clipped"):
        QuantizationSpec(3, 3, gradient="lsq")


@pytest.mark.parametrize("momentum", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_a_momentum_that_is_no_average_is_refused(momentum: float) -> None:
    with pytest.raises(ConfigurationError, match=rf"^momentum={momentum} "):
        QuantizationSpec(3, 3, momentum=momentum)


def test_it_cannot_be_changed_behind_its_checks() -> None:
    spec = QuantizationSpec(3, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.weight_bits = 1  # type: ignore[misc]


def test_every_option_of_the_configuration_arrives() -> None:
    config = QuantizerConfig(
        name="deploy",
        weight_bits=2,
        activation_bits=5,
        ranges="percentile",
        percentile=99.0,
        gradient="clipped",
        momentum=0.5,
        include_zero=True,
        first_and_last_8bit=True,
        overrides=[LayerBitsConfig("conv1", 4), LayerBitsConfig("layer?.*", None, 6)],
    )
    assert QuantizationSpec.from_config(config) == QuantizationSpec(
        weight_bits=2,
        activation_bits=5,
        gradient="clipped",
        momentum=0.5,
        include_zero=True,
        ranges="percentile",
        percentile=99.0,
        deployable=True,
        first_and_last_8bit=True,
        overrides=(LayerBits("conv1", 4), LayerBits("layer?.*", None, 6)),
    )


@pytest.mark.parametrize("name", ["minmax", "mse", "percentile", "lsq"])
def test_a_quantizer_is_named_after_its_ranges(name: str) -> None:
    spec = QuantizationSpec.from_config(QuantizerConfig(name=name))
    assert (spec.ranges, spec.deployable) == (name, False)


def test_no_option_of_the_configuration_is_forgotten() -> None:
    # The name says whether it is deployable; bits is short for two others; the learning rate is
    # the optimizer's.
    elsewhere = {"name", "bits", "step_lr_multiplier"}
    configured = {field.name for field in dataclasses.fields(QuantizerConfig)} - elsewhere
    assert configured | {"deployable"} == {f.name for f in dataclasses.fields(QuantizationSpec)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranges": "maximum"}, "ranges='maximum' is not one of: minmax, mse, percentile, lsq"),
        ({"percentile": 50}, "percentile=50 must be greater than 50 and at most 100"),
        ({"percentile": 100.5}, "percentile=100.5 must be"),
        ({"percentile": float("nan")}, "percentile=nan must be"),
        ({"deployable": True}, "deployable=True needs include_zero=True"),
    ],
)
def test_options_that_no_quantizer_has_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        QuantizationSpec(3, 3, **options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 4.0, "4"])
@pytest.mark.parametrize("field", ["weight_bits", "activation_bits"])
def test_bits_of_single_layers_are_checked_too(field: str, bits: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"'conv1': {field}={bits} must be 2 to 8$"):
        LayerBits("conv1", **{field: bits})


def test_an_override_that_changes_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'conv1' sets neither weight_bits nor activation"):
        LayerBits("conv1")
