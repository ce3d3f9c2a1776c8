"""``inspect`` in Python says what the command says, and what ``quantize`` then does."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from hast_lightning import Inspection, inspect, quantize
from hast_lightning.api.composition import composed
from hast_lightning.errors import ConfigurationError
from hast_lightning.runs import inspection
from tests.small_calls import INPUT, SHORT

BITS = {"conv1": 32, "linear": (5, 8), "*": (4, None)}


@pytest.fixture(scope="module")
def found(network: nn.Module) -> Inspection:
    return inspect(network, BITS, overrides=SHORT, **INPUT)


def test_what_it_says_is_what_quantize_does(network: nn.Module, found: Inspection) -> None:
    made = quantize(network, BITS, overrides=SHORT, **INPUT)
    assert found.bits == made.bits
    assert found.activation_bits == made.activation_bits == {"layer3.0.relu2": 8}
    assert found.steps == made.result.steps_by_stage
    assert (found.method, found.schedule) == (made.result.method, made.result.budget)
    assert found.float_bytes == made.result.teacher_bytes
    assert found.quantized_bytes == made.result.quantized_bytes


def test_its_text_is_what_the_command_prints() -> None:
    console = Console(file=io.StringIO(), width=inspection.COLUMNS)
    words = ("quantizer.bits=4", "method=synq", "schedule=quick", "data=none")
    inspection.inspect(composed(words), console)
    assert isinstance(console.file, io.StringIO)
    found = inspect("digits", 4, method="synq", schedule="quick")
    assert str(found) == console.file.getvalue().rstrip()
    assert "synthesis" in str(found)


def test_it_leaves_the_network_and_the_random_numbers_alone(network: nn.Module) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    stream = torch.get_rng_state()
    inspect(network, 4, **INPUT)
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_its_repr_is_one_line_with_the_class_of_the_network(found: Inspection) -> None:
    assert repr(found).startswith("Inspection(CifarResNet, W4, activations in float, mixed: ")
    assert "\n" not in repr(found)


def test_a_method_that_does_not_fit_is_told() -> None:
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    found = inspect(nn.Sequential(*layers), 4, method="hast", schedule="quick", **INPUT)
    assert "has no BatchNorm" in found.refusal
    assert found.steps == {}
    assert repr(found).endswith("; would be refused)")
    assert found.bits == {"0": 4, "4": 4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 9}, "quantizer.weight_bits=9 must be"),
        ({"method": "hest"}, "hest is no option of method; did you mean hast"),
        ({"overrides": "command=run"}, "overrides: command=run would change nothing"),
    ],
)
def test_wrong_input_is_one_line(network: nn.Module, options: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        inspect(network, **options, **INPUT)
