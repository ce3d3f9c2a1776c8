"""What the configuration refuses, and how it says so."""

from __future__ import annotations

import ast
import copy
import functools
import math
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ValidationError

import hast_lightning.config as config_module
from hast_lightning.config import (
    Config,
    config_folder,
    register_schemas,
    require_choice,
    require_range,
    to_object,
)
from hast_lightning.errors import ConfigurationError
from tests.composition import composed

NAN, INFINITY = math.nan, math.inf

# Key -> values to refuse. Other keys of the same group may have to be set along with it.
REFUSED: dict[str, list[Any]] = {
    "model.provider": ["hub", ""],
    "model.num_classes": [-1, 0, 1],
    "model.input_size": [0, 3],
    "model.mean": [[1.5], [-0.1], [NAN]],
    "model.std": [[0.0], [-1.0], [NAN], [INFINITY]],
    "quantizer.name": ["adaround"],
    "quantizer.ranges": ["adaround"],
    "quantizer.percentile": [50.0, 101.0, NAN],
    "quantizer.step_lr_multiplier": [0.0, NAN],
    "quantizer.bits": [1, 9],
    "quantizer.weight_bits": [-2, 0, 1, 9, 16],
    "quantizer.activation_bits": [-2, 0, 1, 9, 16],
    "quantizer.gradient": ["straight_through"],
    "quantizer.momentum": [-0.1, 1.0, NAN, INFINITY],
    "schedule.name": ["three_stage"],
    "schedule.synthesis_steps": [-1],
    "schedule.calibration_steps": [-1, 0],
    "schedule.student_steps": [-1],
    "schedule.learning_rate.policy": ["plateau"],
    "schedule.learning_rate.factor": [0.0, 1.5, NAN],
    "schedule.learning_rate.warmup_steps": [-1],
    "schedule.learning_rate.milestones": [[-1], [5, 5], [9, 3]],
    "synthesis.source": ["disk"],
    "synthesis.bns_weight": [-1.0, NAN, INFINITY],
    "synthesis.hardness.beta": [-1.0, NAN],
    "synthesis.hardness.gamma": [-0.5, NAN],
    "synthesis.bank.size": [0, -256],
    "synthesis.bank.batch_size": [0],
    "synthesis.bank.iterations": [0],
    "synthesis.bank.lr": [0.0, -1.0, NAN, INFINITY],
    "synthesis.bank.patience": [-1],
    "synthesis.bank.factor": [0.0, 2.0],
    "synthesis.bank.min_lr": [-1e-4, NAN],
    "synthesis.generator.conditioning": ["concatenate"],
    "synthesis.generator.latent_dim": [0],
    "synthesis.generator.batch_size": [0],
    "synthesis.generator.lr": [0.0, NAN],
    "synthesis.generator.beta1": [-0.1, 1.0],
    "synthesis.generator.beta2": [-0.1, 1.0],
    "synthesis.images.max_images": [0],
    "synthesis.augmentation.probability": [-0.1, 1.1, NAN],
    "synthesis.augmentation.min_scale": [0.0, 1.1, NAN],
    "synthesis.augmentation.max_scale": [0.1, 1.1, NAN],
    "synthesis.augmentation.flip": [-0.1, 1.1],
    "synthesis.calibration.source": ["data"],
    "synthesis.calibration.batch_size": [0],
    "synthesis.calibration.cross_entropy_weight": [-1.0],
    "synthesis.calibration.bns_weight": [-1.0],
    "distillation.batch_size": [0],
    "distillation.cross_entropy_weight": [-1.0, NAN],
    "distillation.kd.weight": [-1.0, NAN],
    "distillation.kd.temperature": [0.0, -1.0, INFINITY],
    "distillation.kd.reduction": ["sum"],
    "distillation.alignment.weight": [-1.0],
    "distillation.promotion.eps": [-0.01, NAN],
    "distillation.augmentation.flip": [2.0],
    "distillation.optimizer.name": ["lamb"],
    "distillation.optimizer.lr": [0.0, -1e-5, NAN, INFINITY],
    "distillation.optimizer.momentum": [-0.1, 1.0],
    "distillation.optimizer.weight_decay": [-1e-4],
    "distillation.optimizer.clip_norm": [0.0, NAN],
    "data.source": ["mnist"],
    "data.batch_size": [0],
    "data.holdout": [-0.1, 0.6, NAN],
    "trainer.devices": [0],
    "trainer.num_nodes": [0],
    "trainer.precision": ["16-true", "64"],
    "trainer.threads": [0],
    "trainer.timeout_minutes": [0.0, NAN],
    "trainer.micro_batch": [0],
    "trainer.log_every_n_steps": [0],
    "logger.name": ["mlflow"],
    "callbacks.checkpoint_every_n_steps": [0],
    "callbacks.checkpoint_every_n_minutes": [0.0, NAN],
    "callbacks.checkpoints_kept": [0],
    "callbacks.evaluate_every_n_steps": [-1],
    "callbacks.grid_images": [0],
    "callbacks.media_every_n_steps": [-1],
    "export.formats": [["tflite"]],
    "export.min_agreement": [-1.0, 101.0, NAN],
    "export.images": [0],
    "export.opset": [1],
    "compare.formats": [["word"]],
    "compare.plots": [["gif"]],
    "command": ["train"],
    "seed": [-1, 2**32],
    "run": [["evaluate", "distil"]],
}
ALONG = {
    "model.mean": {"model.std": [1.0]},
    "model.std": {"model.mean": [0.5]},
    "quantizer.ranges": {"quantizer.name": "deploy"},
}


def _raw(*overrides: str) -> DictConfig:
    register_schemas()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose("config", overrides=list(overrides))


@functools.cache
def _default() -> DictConfig:
    return _raw()


def changed(changes: dict[str, Any]) -> Config:
    """The default configuration with some values replaced, checked."""
    config = copy.deepcopy(_default())
    for key, value in changes.items():
        OmegaConf.update(config, key, value)
    return to_object(config)


def reported(key: str) -> str:
    """The key as messages name it: augmentation, which is in two groups, without its group."""
    return key.split(".", 1)[1] if ".augmentation." in key else key


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in REFUSED.items() for value in values]
)
def test_a_value_out_of_range_is_refused_with_its_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        changed({key: value, **ALONG.get(key, {})})
    message = str(caught.value)
    assert message.startswith(f"{reported(key)}="), message
    assert "\n" not in message
    offender = value[-1] if isinstance(value, list) else value
    shown = str(value if "must increase" in message else offender)
    assert shown in message


def test_every_check_of_the_configuration_has_a_value_here_that_it_refuses() -> None:
    """Guards the table above: it names each key that the schemas check."""
    schemas = Path(config_module.__file__).parent.glob("*.py")
    checked = {
        node.args[0].value
        for schema in schemas
        for node in ast.walk(ast.parse(schema.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("require_range", "require_choice")
        and isinstance(node.args[0], ast.Constant)
    }
    assert checked == {reported(key) for key in REFUSED}


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_bit_width_from_two_to_eight_is_allowed(bits: int) -> None:
    config = changed({"quantizer.weight_bits": bits, "quantizer.activation_bits": bits})
    assert (config.quantizer.weight_bits, config.quantizer.activation_bits) == (bits, bits)


# --- the two checks themselves ---------------------------------------------------------------


def test_a_choice_names_key_value_and_what_is_allowed() -> None:
    require_choice("fruit", "pear", ["pear", "apple"])
    with pytest.raises(ConfigurationError) as caught:
        require_choice("fruit", "plum", ["pear", "apple"])
    assert str(caught.value) == "fruit='plum' is not one of: apple, pear"


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        (0, {"minimum": 1}, "k=0 must be at least 1"),
        (3, {"minimum": 1, "maximum": 2}, "k=3 must be at least 1 and at most 2"),
        (0, {"minimum": 0, "open_minimum": True}, "k=0 must be greater than 0"),
        (NAN, {"minimum": 0, "maximum": 1}, "k=nan must be at least 0 and at most 1"),
        (INFINITY, {"minimum": 0}, "k=inf must be at least 0 and finite"),
        (-INFINITY, {"minimum": 0}, "k=-inf must be at least 0"),
        (-1, {"minimum": 0, "maximum": 4294967295}, "k=-1 must be at least 0 and at most 42949"),
    ],
)
def test_a_range_says_what_is_allowed(value: float, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        require_range("k", value, **options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("value", "options"),
    [
        (1, {"minimum": 1}),
        (1e-9, {"minimum": 0, "open_minimum": True}),
        (2, {"minimum": 1, "maximum": 2}),
    ],
)
def test_the_ends_of_a_range_belong_to_it(value: float, options: dict[str, Any]) -> None:
    require_range("k", value, **options)
    with pytest.raises(ConfigurationError):
        require_range("k", -value, **options)


# --- combinations ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=resnet20_cifar10"], "model.checkpoint is not set: resnet20_cifar10 has no"),
        (["model.provider=cifar_resnet", "model.checkpoint=x"], "model.depth=None must be 6n"),
        (["model=resnet20_cifar10", "model.depth=21"], "model.depth=21 must be 6n"),
        (["model=resnet20_cifar10", "model.depth=2"], "model.depth=2 must be 6n"),
        (["model=torchvision"], "missing mandatory value: name"),
        (["model.mean=[0.5]"], "model.mean and model.std go together"),
        (["model.std=[0.5]"], "model.mean and model.std go together"),
        (["data=npz"], "data.path is not set: point it at an .npz file"),
        (["data=none", "data.holdout=0"], "data.holdout=0.0 must be greater than 0"),
        (
            ["synthesis.bank.size=100", "synthesis.bank.batch_size=30"],
            "synthesis.bank.size=100 must be a multiple of synthesis.bank.batch_size=30",
        ),
        (
            ["distillation.kd.weight=0", "distillation.alignment.enabled=false"],
            "distillation has no term: give distillation.kd.weight",
        ),
        (
            ["distillation.kd.weight=0", "distillation.alignment.weight=0"],
            "distillation has no term",
        ),
        (["synthesis=generator"], "schedule.synthesis_steps is not set: a generator has no"),
        (
            ["synthesis=generator", "schedule=alternating", "run=[synthesize]"],
            "schedule.synthesis_steps is not set: a generator has no",
        ),
        (["run=[]"], "run=[] has neither synthesize nor distill"),
        (["run=[evaluate,report]"], "has neither synthesize nor distill"),
        (["run=[distill]"], "run=['distill'] has no synthesize and synthesis.load is not set"),
        (
            ["run=[synthesize]", "synthesis.load=x"],
            "with synthesis.load=x: nothing would be done",
        ),
    ],
)
def test_impossible_combinations_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        composed(*overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=resnet20_cifar10", "model.pretrained=false"],
        ["model=resnet20_cifar10", "model.checkpoint=weights.th"],
        ["model=torchvision", "model.name=resnet18"],
        ["model.mean=[0.5]", "model.std=[0.25]"],
        ["data=npz", "data.path=images.npz"],
        ["data=none", "data.holdout=0.25"],
        ["synthesis=generator", "schedule.synthesis_steps=100"],
        ["synthesis=generator", "synthesis.load=x"],
        ["synthesis=generator", "schedule=alternating"],
        ["run=[synthesize]"],
        ["run=[distill,evaluate]", "synthesis.load=x"],
        ["distillation.kd.weight=0"],
        ["distillation.alignment.enabled=false"],
        ["schedule.learning_rate.milestones=[3,5]"],
        ["trainer.threads=1"],
    ],
)
def test_possible_combinations_are_not(overrides: list[str]) -> None:
    assert isinstance(composed(*overrides), Config)


# --- types and keys, as the command line meets them ------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        "quantizer.weight_bits=three",
        "quantizer.weight_bits=3.5",
        "quantizer.weight_bits=true",
        "quantizer.weight_bits=null",
        "quantizer.weight_bits=nan",
        "quantizer.include_zero=perhaps",
        "quantizer.momentum=high",
        "schedule.student_steps=[1,2]",
        "schedule.learning_rate.milestones=[a]",
        "model.mean=0.5",
        "distillation.kd=20",
        "seed=zero",
    ],
)
def test_a_value_of_the_wrong_type_is_refused(override: str) -> None:
    with pytest.raises(ConfigCompositionException) as caught:
        composed(override)
    assert override in str(caught.value)
    assert isinstance(caught.value.__cause__, ValidationError)


@pytest.mark.parametrize(
    "key", ["quantizer.wait_bits", "synthesis.bank.sice", "distilation", "model.kd", "epochs"]
)
def test_a_mistyped_key_is_refused(key: str) -> None:
    with pytest.raises(ConfigCompositionException, match=rf"Could not override '{key}'"):
        composed(f"{key}=3")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+quantizer.wait_bits=3", "quantizer.wait_bits is no key of the configuration; quantizer"),
        ("+synthesis.bank.sice=3", "synthesis.bank.sice is no key of the configuration; synth"),
        ("+epochs=3", "epochs is no key of the configuration; the root has: artifact, ca"),
        ("+foo={a: 1}", "foo is no key of the configuration"),
    ],
)
def test_a_mistyped_key_is_refused_when_it_is_added_too(override: str, message: str) -> None:
    """Hydra proposes the plus sign for every key that it does not know."""
    with pytest.raises(ConfigurationError) as caught:
        composed(override)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_missing_group_is_named() -> None:
    with pytest.raises(ConfigurationError, match="missing mandatory value: quantizer"):
        composed("~quantizer")


def test_the_checked_configuration_is_plain_objects() -> None:
    config = composed()
    assert isinstance(config, Config)
    assert type(config.quantizer) is config_module.QuantizerConfig
    assert type(config.synthesis.bank) is config_module.ImageBankConfig
    assert type(config.run) is list
