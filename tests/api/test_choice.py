"""Which method and budget are taken where none is named, and that a guess is said to be one."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import nn

from hast_lightning import quantize
from hast_lightning.api import quantization
from hast_lightning.api.composition import composed
from hast_lightning.config import Config
from hast_lightning.config.choice import MEASURED, choose
from hast_lightning.errors import ConfigurationError
from tests.composition import options
from tests.small_calls import INPUT

CIFAR, IMAGENET = "recommended", "recommended_imagenet"


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


def taken(planned: list[Config], network: Any, *arguments: Any, **options: Any) -> tuple[str, str]:
    """Method and schedule of a call."""
    with pytest.raises(ReachedError):
        quantize(network, *arguments, **options)
    return planned[-1].method.name, planned[-1].schedule.name


def test_every_option_that_may_be_chosen_is_there() -> None:
    assert {known.method for known in MEASURED} <= set(options("method"))
    assert {known.schedule for known in MEASURED} <= set(options("schedule"))


@pytest.mark.parametrize(
    ("shape", "method", "schedule", "suits"),
    [
        ((1, 8, 8), "hast", "demo", True),
        ((3, 32, 32), CIFAR, "quick", True),
        ((3, 224, 224), IMAGENET, "evening_imagenet", True),
        ((3, 8, 8), "hast", "demo", False),
        ((1, 28, 28), CIFAR, "quick", False),
        ((3, 64, 64), CIFAR, "quick", False),
        ((3, 16, 16), CIFAR, "quick", False),
        ((3, 32, 33), CIFAR, "quick", False),
        ((3, 299, 299), IMAGENET, "evening_imagenet", False),
    ],
)
def test_size_and_channels_decide(
    shape: tuple[int, int, int], method: str, schedule: str, suits: bool
) -> None:
    choice = choose(shape, method=True)
    assert (choice.named, choice.suits) == ({"method": method, "schedule": schedule}, suits)


@pytest.mark.parametrize(
    ("shape", "bits", "recipe"),
    [
        ((1, 8, 8), None, "digits_w3a3"),
        ((1, 8, 8), 2, "digits_w2a2"),
        ((3, 32, 32), None, "cifar10_resnet20_w4a4_recommended"),
        ((3, 32, 32), 3, "cifar10_resnet20_w3a3_recommended"),
        ((3, 32, 32), 6, "cifar10_resnet20_w6a6_recommended"),
    ],
)
def test_what_is_chosen_is_the_recommended_recipe(
    planned: list[Config], shape: tuple[int, int, int], bits: int | None, recipe: str
) -> None:
    """Value by value, but for its name and what is said of the network and the data."""
    taken(planned, classifier(shape[0]), bits, input_shape=shape, mean=shape[0] * [0.5],
          std=shape[0] * [0.5], folder="kept", progress=True)  # fmt: skip
    own = ["model=own", "model.provider=given", "model.name=own"]
    expected = composed([f"+experiment={recipe}", *own, "data=none", *bits_as_words(bits)])
    found, wanted = asdict(planned[-1]), asdict(expected)
    for name in ("recipe", "model"):
        del found[name], wanted[name]
    # What the method does itself, the recipe's budget asks for once more.
    assert {found["schedule"].pop("learning_rate"), wanted["schedule"].pop("learning_rate")} <= {
        "constant",
        "cosine",
    }
    assert planned[-1].stages["distillation"].learning_rate.policy == "cosine"  # type: ignore[attr-defined]
    assert found == wanted


@pytest.mark.parametrize(
    ("bits", "order"),
    [
        (None, ["synthesis", "calibration", "correction"]),
        (7, ["synthesis", "calibration", "correction"]),
        (6, ["synthesis", "calibration", "correction", "reconstruction"]),
        (4, ["synthesis", "calibration", "correction", "reconstruction"]),
    ],
)
def test_a_large_network_is_corrected_and_at_few_bits_rebuilt(
    planned: list[Config], bits: int | None, order: list[str]
) -> None:
    assert taken(planned, classifier(3), bits, input_shape=224) == (IMAGENET, "evening_imagenet")
    assert planned[-1].order == order
    assert planned[-1].trainer.channels_last


@pytest.mark.parametrize("bits", [2, "w2a4", "w4a2"])
def test_two_bits_are_rebuilt_unit_by_unit(planned: list[Config], bits: Any) -> None:
    assert taken(planned, classifier(3), bits, input_shape=32) == ("reconstruct", "quick")
    widths = planned[-1].quantizer.widths
    assert min(widths.weights, widths.activations) == 2


@pytest.mark.parametrize("bits", [7, 8, "w8a32"])
def test_eight_bits_take_a_minute(planned: list[Config], bits: Any) -> None:
    found = taken(planned, classifier(3), bits, input_shape=32)
    assert found == ("without_training", "one_minute")
    assert planned[-1].order == ["synthesis", "calibration", "correction"]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 224, 224), (6, 32)])
@pytest.mark.parametrize("bits", [None, 2, 3, 8])
def test_a_budget_without_steps_is_for_a_method_without_training(
    shape: tuple[int, int, int], bits: int | None
) -> None:
    choice = choose(shape, bits, method=True, schedule="one_minute")
    assert choice.named == {"method": "without_training"}
    assert choice.suits == (shape == (3, 32, 32))
    # A method that is named stays, and so does a budget that is.
    assert choose(shape, bits, method=False, schedule="one_minute").named == {}


def test_the_best_method_may_be_named(planned: list[Config]) -> None:
    network = classifier(3)
    for said in ({"method": "best"}, {"overrides": "method=best"}, {"recipe": {"method": "best"}}):
        assert taken(planned, network, 4, input_shape=32, **said) == (CIFAR, "quick")
    words = {"method": "best", "schedule": "one_minute"}
    assert taken(planned, network, 3, input_shape=32, **words)[0] == "without_training"
    with pytest.raises(ConfigurationError, match="a recipe names its method itself"):
        quantize(network, 4, input_shape=32, recipe="resnet18_w4a4", method="best")


def bits_as_words(bits: int | None) -> list[str]:
    return (
        []
        if bits is None
        else [f"quantizer.{kind}_bits={bits}" for kind in ("weight", "activation")]
    )


def test_a_network_gets_what_suits_its_images_without_a_word(planned: list[Config]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert taken(planned, classifier(3), 3, input_shape=32) == (CIFAR, "quick")
        assert taken(planned, classifier(1), (2, 3), **INPUT) == ("hast", "demo")
        assert taken(planned, classifier(3), 5, input_shape=224) == (IMAGENET, "evening_imagenet")
        assert planned[-1].recipe == f"{IMAGENET}_Sequential_w5a5"
        assert (planned[-1].model.provider, planned[-1].model.factory) == ("given", None)
        assert taken(planned, "digits") == ("hast", "demo")
        assert planned[-1].model.provider == "digits"


def test_what_is_named_is_taken_and_the_rest_chosen(planned: list[Config]) -> None:
    network = classifier(3)
    assert taken(planned, network, 4, method="synq", input_shape=32) == ("synq", "quick")
    assert taken(planned, network, 4, schedule="demo", input_shape=32) == (CIFAR, "demo")
    assert taken(planned, network, 4, overrides="method=gdfq", input_shape=32) == ("gdfq", "quick")
    assert taken(planned, network, 4, recipe={"schedule": "demo"}, input_shape=32) == (
        CIFAR,
        "demo",
    )
    # Overrides go before all else, and method and budget before those of a recipe.
    assert taken(planned, network, 4, method="synq", overrides="method=gdfq", input_shape=32) == (
        "gdfq",
        "quick",
    )
    assert taken(
        planned, network, 4, recipe="resnet18_w4a4", method="synq", schedule="demo", input_shape=32
    ) == ("synq", "demo")
    # A method that is named is as it stands in its file.
    taken(planned, network, 3, method=CIFAR, input_shape=32)
    assert planned[-1].quantizer.ranges.lr_multiplier == 1  # type: ignore[attr-defined]


def test_the_same_words_mean_the_same_on_the_command_line(planned: list[Config]) -> None:
    taken(planned, "digits", 4, method="synq", schedule="quick", folder="kept", progress=True)
    words = ["model=digits", "method=synq", "schedule=quick", "quantizer.bits=4", "data=none"]
    found, typed = asdict(planned[-1]), asdict(composed(words))
    assert found["quantizer"].pop("bits") is None
    assert typed["quantizer"].pop("bits") == 4
    assert found == typed


@pytest.mark.parametrize(
    ("named", "taken_words"),
    [
        ({}, f"method='{CIFAR}' schedule='quick', for 3x32x32"),
        ({"method": "gdfq"}, "images of 3x64x64: schedule='quick', for 3x32x32"),
        ({"schedule": "quick"}, f"images of 3x64x64: method='{CIFAR}', for 3x32x32"),
    ],
)
def test_a_guess_is_a_warning_in_one_line_that_points_at_the_call(
    planned: list[Config], named: dict[str, str], taken_words: str
) -> None:
    with pytest.warns(UserWarning, match="nothing was measured on images of 3x64x64") as seen:
        taken(planned, classifier(3), 4, input_shape=64, **named)
    (warning,) = seen
    text = str(warning.message)
    assert taken_words in text
    assert "\n" not in text
    assert warning.filename == __file__


@pytest.mark.parametrize(
    "options",
    [
        {"recipe": "resnet18_w4a4"},
        {"overrides": "+experiment=resnet18_w4a4"},
        {"method": "hast_imagenet", "schedule": "released"},
        {"method": "hast_imagenet", "overrides": {"schedule": "released"}},
    ],
)
def test_what_is_named_is_taken_without_a_word(
    planned: list[Config], options: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert taken(planned, classifier(3), 4, input_shape=64, **options) == (
            "hast_imagenet",
            "released",
        )
    assert planned[-1].model.provider == "given"


def test_a_mapping_changes_what_is_chosen(planned: list[Config]) -> None:
    terms = {"kd": {"weight": 7.0}}
    changes = {
        "quantizer": {"weight_bits": 3},
        "stages": {"distillation": {"terms": terms}},
    }
    assert taken(planned, classifier(3), recipe=changes, input_shape=32) == (CIFAR, "quick")
    distillation: Any = planned[-1].stages["distillation"]
    assert distillation.terms["kd"].weight == 7
    assert planned[-1].quantizer.ranges.lr_multiplier == 5  # type: ignore[attr-defined]


@pytest.mark.parametrize("quantizer", ["quantizer=minmax", "quantizer=mse"])
def test_another_quantizer_is_not_given_what_the_usual_one_needs(
    planned: list[Config], quantizer: str
) -> None:
    taken(planned, classifier(3), 3, overrides=quantizer, input_shape=32)
    assert planned[-1].quantizer.ranges.kind in quantizer


@pytest.mark.parametrize(
    ("bits", "overrides", "faster"),
    [
        (None, "quantizer.bits=3", True),
        (None, {"quantizer": {"weight_bits": 3}}, True),
        (3, "quantizer.bits=4", False),
        (4, "quantizer.weight_bits=3", True),
        (3, "quantizer.activation_bits=8", True),
        ("w3a8", "seed=1", True),
        ({"0": 3, "*": 4}, "seed=1", False),
    ],
)
def test_bits_count_wherever_they_are_asked_for(
    planned: list[Config], bits: Any, overrides: Any, faster: bool
) -> None:
    taken(planned, classifier(3), bits, overrides=overrides, input_shape=32)
    rate: float = planned[-1].quantizer.ranges.lr_multiplier  # type: ignore[attr-defined]
    assert rate == (5 if faster else 1)


def test_recipes_without_a_network_of_their_own_fit_a_named_one(planned: list[Config]) -> None:
    taken(planned, "digits", recipe="mobilenetv1_x025_w4a4_quick")
    assert (planned[-1].model.name, planned[-1].model.factory) == ("digits_resnet", None)


def test_a_call_leaves_the_random_stream_alone(planned: list[Config]) -> None:
    network = classifier(3)
    state = torch.get_rng_state()
    taken(planned, network, 4, input_shape=32)
    taken(planned, "digits", 3)
    assert torch.equal(torch.get_rng_state(), state)
