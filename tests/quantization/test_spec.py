"""The specification refuses what no quantizer could do, where it is constructed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from hast_lightning.config import QuantizerConfig
from hast_lightning.errors import ConfigurationError
from hast_lightning.quantization.spec import QuantizationSpec


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
        weight_bits=2,
        activation_bits=5,
        gradient="clipped",
        momentum=0.5,
        include_zero=True,
    )
    spec = QuantizationSpec.from_config(config)
    assert dataclasses.asdict(spec) == {
        "weight_bits": 2,
        "activation_bits": 5,
        "gradient": "clipped",
        "momentum": 0.5,
        "include_zero": True,
    }


def test_no_option_of_the_configuration_is_forgotten() -> None:
    configured = {field.name for field in dataclasses.fields(QuantizerConfig)} - {"name"}
    assert configured == {field.name for field in dataclasses.fields(QuantizationSpec)}
