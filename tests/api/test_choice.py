"""Which recipe is taken where none is named, and that it is said where it is a guess."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from hast_lightning import quantize
from hast_lightning.api import quantization
from hast_lightning.api.recipes import MEASURED, choose
from hast_lightning.config import Config
from tests.composition import options
from tests.small_calls import INPUT

CIFAR, IMAGENET = "cifar10_resnet20", "mobilenetv1_x025"


class ReachedError(Exception):
    """The run would begin."""


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configurations that would be run, none of which is."""
    configs: list[Config] = []

    def carry_out(config: Config, *_: Any) -> None:
        configs.append(config)
        raise ReachedError

    monkeypatch.setattr(quantization, "carry_out", carry_out)
    return configs


def classifier(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def recipe_of(planned: list[Config], network: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(ReachedError):
        quantize(network, *arguments, **options)
    return planned[-1].recipe


def test_every_recipe_that_may_be_chosen_is_there() -> None:
    chosen = {recipe for family in MEASURED for recipe in family.by_bits.values()}
    assert chosen <= set(options("experiment"))


@pytest.mark.parametrize(
    ("shape", "bits", "recipe", "suits"),
    [
        ((1, 8, 8), 3, "digits_w3a3", True),
        ((1, 8, 8), 2, "digits_w2a2", True),
        ((1, 8, 8), None, "digits_w3a3", True),
        ((3, 32, 32), 2, f"{CIFAR}_w3a3_recommended", True),
        ((3, 32, 32), 8, f"{CIFAR}_w4a4_recommended", True),
        ((3, 224, 224), 3, f"{IMAGENET}_w4a4_recommended", True),
        ((3, 224, 224), 5, f"{IMAGENET}_w5a5_recommended", True),
        ((3, 224, 224), None, f"{IMAGENET}_w8a8_recommended", True),
        ((3, 8, 8), 3, "digits_w3a3", False),
        ((1, 28, 28), 4, f"{CIFAR}_w4a4_recommended", False),
        ((3, 64, 64), 4, f"{CIFAR}_w4a4_recommended", False),
        ((3, 16, 16), 4, f"{CIFAR}_w4a4_recommended", False),
        ((3, 299, 299), 8, f"{IMAGENET}_w8a8_recommended", False),
        ((3, 32, 33), 4, f"{CIFAR}_w4a4_recommended", False),
    ],
)
def test_size_channels_and_bits_decide(
    shape: tuple[int, int, int], bits: int | None, recipe: str, suits: bool
) -> None:
    choice = choose(shape, bits)
    assert (choice.recipe, choice.suits) == (recipe, suits)


def test_a_network_gets_the_recipe_for_its_images_without_a_word(planned: list[Config]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert recipe_of(planned, classifier(3), 3, input_shape=32) == (f"{CIFAR}_w3a3_recommended")
        assert recipe_of(planned, classifier(1), (2, 3), **INPUT) == "digits_w2a2"
        assert recipe_of(planned, classifier(3), 5, input_shape=224) == (
            f"{IMAGENET}_w5a5_recommended"
        )
        assert recipe_of(planned, "digits") == "digits_w3a3"
        assert planned[-1].model.provider == "digits"
    config = planned[2]
    assert (config.model.provider, config.model.factory) == ("given", None)
    assert config.quantizer.name == "lsq"
    assert config.distillation.optimizer.lr == 3e-4


def test_a_guess_is_a_warning_in_one_line_that_points_at_the_call(planned: list[Config]) -> None:
    with pytest.warns(UserWarning, match="no recipe was measured on images of 3x64x64") as seen:
        recipe_of(planned, classifier(3), 4, input_shape=64)
    (warning,) = seen
    text = str(warning.message)
    assert f"recipe='{CIFAR}_w4a4_recommended'" in text
    assert "\n" not in text
    assert warning.filename == __file__


@pytest.mark.parametrize(
    "options",
    [
        {"recipe": "resnet18_w4a4"},
        {"overrides": "+experiment=resnet18_w4a4"},
        {"recipe": f"{IMAGENET}_w4a4_recommended", "overrides": {"recipe": "resnet18_w4a4"}},
    ],
)
def test_what_is_named_is_taken_without_a_word(
    planned: list[Config], options: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recipe = recipe_of(planned, classifier(3), 4, input_shape=64, **options)
    assert recipe == "resnet18_w4a4"
    assert planned[-1].model.provider == "given"


def test_a_mapping_changes_the_recipe_that_is_chosen(planned: list[Config]) -> None:
    changes = {"quantizer": {"weight_bits": 3}, "distillation": {"kd": {"weight": 7.0}}}
    recipe = recipe_of(planned, classifier(3), recipe=changes, input_shape=32)
    assert recipe == f"{CIFAR}_w3a3_recommended"
    assert planned[-1].distillation.kd.weight == 7
    assert planned[-1].quantizer.step_lr_multiplier == 5


@pytest.mark.parametrize(
    ("bits", "overrides", "recipe"),
    [
        (None, "quantizer.bits=2", "digits_w2a2"),
        (None, {"quantizer": {"weight_bits": 2}}, "digits_w2a2"),
        (3, "quantizer.bits=2", "digits_w2a2"),
        (2, "quantizer.weight_bits=3", "digits_w3a3"),
        (2, "quantizer.activation_bits=8", "digits_w2a2"),
    ],
)
def test_bits_count_wherever_they_are_asked_for(
    planned: list[Config], bits: int | None, overrides: Any, recipe: str
) -> None:
    assert recipe_of(planned, "digits", bits, overrides=overrides) == recipe


def test_recipes_without_a_network_of_their_own_fit_a_named_one(planned: list[Config]) -> None:
    recipe_of(planned, "digits", recipe=f"{IMAGENET}_w4a4_quick")
    assert (planned[-1].model.name, planned[-1].model.factory) == ("digits_resnet", None)


def test_a_call_leaves_the_random_stream_alone(planned: list[Config]) -> None:
    network = classifier(3)
    state = torch.get_rng_state()
    recipe_of(planned, network, 4, input_shape=32)
    recipe_of(planned, "digits", 3)
    assert torch.equal(torch.get_rng_state(), state)
