"""What the configuration refuses, and how it says so."""

from __future__ import annotations

import ast
import copy
import functools
import math
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ValidationError

import hast_lightning.config as config_module
from hast_lightning.config import Config, from_saved, import_parts, one_line, to_object
from hast_lightning.config.renamed import RENAMED, renamed
from hast_lightning.core.checks import require_choice, require_range
from hast_lightning.core.part import Part, parts
from hast_lightning.errors import ConfigurationError
from hast_lightning.quantization import settings
from hast_lightning.sources.image_bank import ImageBank
from tests.composition import composed, composed_raw, options

NAN, INFINITY = math.nan, math.inf

# Key -> values to refuse. Other keys of the same group may have to be set along with it.
REFUSED: dict[str, list[Any]] = {
    "model.provider": ["hub", ""],
    "model.num_classes": [-1, 0, 1],
    "model.input_size": [0, 3, "49x", "3x64", "wide"],
    "model.modality": ["sound"],
    "model.noise_steps": [-1, 0, 1],
    "model.mean": [[1.5], [-0.1], [NAN]],
    "model.std": [[0.0], [-1.0], [NAN], [INFINITY]],
    "quantizer.bits": [1, 9],
    "quantizer.weight_bits": [-2, 0, 9, 16],
    "quantizer.group_size": [-1, 0, 1],
    "quantizer.activation_bits": [-2, 0, 1, 9, 16],
    "quantizer.gradient": ["straight_through"],
    "quantizer.momentum": [-0.1, 1.0, NAN, INFINITY],
    "schedule.images": [0, -256],
    "schedule.image_batch": [0],
    "schedule.image_steps": [0],
    "schedule.generator_steps": [0],
    "schedule.calibration_steps": [-1, 0],
    "schedule.student_steps": [-1],
    "schedule.student_batch": [0],
    "schedule.unit_steps": [0],
    "schedule.unit_batch": [0],
    "schedule.learning_rate": ["plateau"],
    "method.certainty": ["certain"],
    "model.front_end.sample_rate": [-1, 500, 10**6],
    "model.front_end.seconds": [0.0, 61.0, NAN],
    "model.front_end.window_ms": [0.0, NAN],
    "model.front_end.stride_ms": [0.0, NAN],
    "model.front_end.mel_bands": [3, 300],
    "model.front_end.lowest_hz": [-1.0, 5000.0, NAN],
    "model.front_end.highest_hz": [-1.0, 9000.0, NAN],
    "model.front_end.coefficients": [0, 41],
    "model.front_end.log_offset": [0.0, NAN],
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
    "safeguard.images": [1],
    "safeguard.iterations": [-1],
    "safeguard.tolerance": [-0.1, 1.5, NAN],
    "callbacks.media_every_n_steps": [-1],
    "export.formats": [["tflite"]],
    "export.max_deviation": [-0.1, NAN],
    "export.min_agreement": [-1.0, 101.0, NAN],
    "export.images": [0],
    "export.opset": [1],
    "compare.formats": [["word"]],
    "compare.plots": [["gif"]],
    "command": ["train"],
    "seed": [-1, 2**32],
}
# The same of parts, which check their values without knowing where they stand.
REFUSED_OF_PARTS: dict[str, list[Any]] = {
    "quantizer.ranges.lr_multiplier": [0.0, NAN],
    "sources.bank.size": [0, -256],
    "sources.bank.batch_size": [0],
    "sources.bank.iterations": [0],
    "sources.bank.lr": [0.0, -1.0, NAN, INFINITY],
    "sources.bank.patience": [-1],
    "sources.bank.factor": [0.0, 2.0],
    "sources.bank.min_lr": [-1e-4, NAN],
    "sources.calibration.conditioning": ["concatenate"],
    "sources.calibration.latent_dim": [0],
    "sources.calibration.batch_size": [0],
    "sources.calibration.lr": [0.0, NAN],
    "sources.calibration.beta1": [-0.1, 1.0],
    "sources.calibration.beta2": [-0.1, 1.0],
    "stages.synthesis.steps": [-1, 0],
    "stages.synthesis.terms.bns.weight": [-1.0, NAN, INFINITY],
    "stages.synthesis.terms.hard_cross_entropy.weight": [-1.0, NAN],
    "stages.synthesis.terms.hard_cross_entropy.gamma": [-0.5, NAN],
    "stages.synthesis.transforms.crop_and_flip.probability": [-0.1, 1.1, NAN],
    "stages.synthesis.transforms.crop_and_flip.min_scale": [0.0, 1.1, NAN],
    "stages.synthesis.transforms.crop_and_flip.max_scale": [0.1, 1.1, NAN],
    "stages.synthesis.transforms.crop_and_flip.flip": [-0.1, 1.1],
    "stages.calibration.steps": [-1, 0],
    "stages.calibration.batch_size": [0],
    "stages.calibration.terms.cross_entropy.weight": [-1.0],
    "stages.distillation.steps": [-1],
    "stages.distillation.batch_size": [0],
    "stages.distillation.terms.kd.weight": [-1.0, NAN],
    "stages.distillation.terms.kd.temperature": [0.0, -1.0, INFINITY],
    "stages.distillation.terms.kd.reduction": ["sum"],
    "stages.distillation.terms.alignment.weight": [-1.0],
    "stages.distillation.transforms.promotion.eps": [-0.01, NAN],
    "stages.distillation.optimizer.name": ["lamb"],
    "stages.distillation.optimizer.lr": [0.0, -1e-5, NAN, INFINITY],
    "stages.distillation.optimizer.momentum": [-0.1, 1.0],
    "stages.distillation.optimizer.weight_decay": [-1e-4],
    "stages.distillation.optimizer.clip_norm": [0.0, NAN],
    "stages.distillation.learning_rate.policy": ["plateau"],
    "stages.distillation.learning_rate.factor": [0.0, 1.5, NAN],
    "stages.distillation.learning_rate.warmup_steps": [-1],
    "stages.distillation.learning_rate.milestones": [[-1], [5, 5], [9, 3]],
}
ALONG = {
    "model.mean": {"model.std": [1.0]},
    "model.std": {"model.mean": [0.5]},
    **{
        key: {"model.front_end.sample_rate": 16000}
        for key in REFUSED
        if key.startswith("model.front_end.") and not key.endswith("sample_rate")
    },
}


@functools.cache
def _default() -> DictConfig:
    return composed_raw()


def changed(changes: dict[str, Any]) -> Config:
    """The default configuration with some values replaced, checked."""
    config = copy.deepcopy(_default())
    for key, value in changes.items():
        OmegaConf.update(config, key, value)
    return to_object(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key, values in (REFUSED | REFUSED_OF_PARTS).items() for value in values],
)
def test_a_value_out_of_range_is_refused_with_its_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        changed({key: value, **ALONG.get(key, {})})
    message = str(caught.value)
    assert message.startswith(f"{key}="), message
    assert "\n" not in message
    offender = value[-1] if isinstance(value, list) else value
    shown = str(value if "must increase" in message else offender)
    assert shown in message


# Numbers of groups that are free, or refused only together with others.
FREE = {"method.year", "model.depth"}


def _types(hint: Any) -> tuple[Any, ...]:
    """The types that a value may have, those of a list's entries among them."""
    inner = [each for argument in get_args(hint) for each in _types(argument)]
    return (hint, *inner)


def _numbers_of_groups(schema: Any, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(schema)
    for field in fields(schema):
        hint, key = hints[field.name], f"{prefix}{field.name}"
        if is_dataclass(hint):
            yield from _numbers_of_groups(hint, f"{key}.")
        elif {int, float} & set(_types(hint)):
            yield key


def test_every_number_and_choice_of_a_group_has_a_value_here_that_it_refuses() -> None:
    """Guards the first table above."""
    schemas = [*Path(config_module.__file__).parent.glob("*.py"), Path(settings.__file__)]
    choices = {
        node.args[0].value
        for schema in schemas
        for node in ast.walk(ast.parse(schema.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "require_choice"
        and isinstance(node.args[0], ast.Constant)
    }
    found = choices | (set(_numbers_of_groups(Config)) - FREE)
    # A number or a text, which the schema cannot tell.
    assert found | {"model.input_size"} == set(REFUSED)


def _numbers_of_parts() -> Iterator[tuple[type[Part], str, float]]:
    """Every setting of every part that is a number, with one that can never be right."""
    import_parts()
    for classes in parts().values():
        for cls in classes.values():
            for field in fields(cls):
                types = _types(get_type_hints(cls)[field.name])
                if float in types and list not in map(get_origin, types):
                    yield cls, field.name, NAN
                elif int in types and list not in map(get_origin, types):
                    yield cls, field.name, -(10**9)


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [pytest.param(*found, id=f"{found[0].kind}.{found[1]}") for found in _numbers_of_parts()],
)
def test_a_part_checks_every_number(cls: type[Part], name: str, value: float) -> None:
    with pytest.raises(ConfigurationError) as caught:
        cls(**{name: value})
    assert str(caught.value).startswith(f"{name}=")


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


TERMS = "stages.distillation.terms"


# --- combinations ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model=resnet20_cifar10"],
            "model.checkpoint is not set: resnet20_cifar10 has no weights",
        ),
        (["model.provider=cifar_resnet", "model.checkpoint=x"], "model.depth=None must be 6n"),
        (["model=resnet20_cifar10", "model.depth=21"], "model.depth=21 must be 6n"),
        (["model=resnet20_cifar10", "model.depth=2"], "model.depth=2 must be 6n"),
        (["model=torchvision"], "model.name is not set"),
        (["model.mean=[0.5]"], "model.mean and model.std go together"),
        (["model.std=[0.5]"], "model.mean and model.std go together"),
        (["data=npz"], "data.path is not set: point it at an .npz file"),
        (["data=none", "data.holdout=0"], "data.holdout=0.0 must be greater than 0"),
        (
            ["sources.bank.size=100", "sources.bank.batch_size=30"],
            "sources.bank.size=100 must be a multiple of batch_size=30",
        ),
        (
            [f"{TERMS}.kd.weight=0", f"{TERMS}.alignment.enabled=false"],
            "stages.distillation.terms: none has a weight, so that nothing would be learned",
        ),
        (
            [f"{TERMS}.kd.weight=0", f"~{TERMS}.alignment"],
            "stages.distillation.terms: none has a weight",
        ),
        (["order=[]"], "order=[] names no stage: nothing would be done"),
        (["order=[synthesis,synthesis]"], "order=['synthesis', 'synthesis'] names a stage twice"),
        (
            ["order=[synthesis,distilation]"],
            "order: 'distilation' is no stage of this method; did you mean distillation; it has: "
            "synthesis, calibration, distillation",
        ),
        (["~stages.distillation"], "order: 'distillation' is no stage of this method; it has:"),
        (["evaluate=false"], "evaluate=false with export.formats: every file is compared with the"),
        (
            ["source@sources.bank=images", "sources.bank.load=x"],
            "sources.bank.load=x: own pictures are read from path",
        ),
        (
            ["source@sources.bank=images", "sources.bank.path=p/a", "data=npz", "data.path=p"],
            "sources.bank.path=p/a and data.path=p overlap: the result would be measured",
        ),
        ([f"~term@{TERMS}.alignment"], f"{TERMS}.alignment has no part"),
        (["quantizer=deploy", "quantizer.include_zero=false"], "quantizer.include_zero=false: the"),
        (["schedule.name=alternating"], "schedule.name=alternating is now method=hast_altern"),
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
        ["method=gdfq"],
        ["order=[synthesis]"],
        ["order=[synthesis]", "evaluate=false"],  # no student, and so no file
        ["order=[calibration,distillation]", "sources.bank.load=x", "report=false"],
        [f"{TERMS}.kd.weight=0"],
        [f"{TERMS}.alignment.enabled=false"],
        [f"~{TERMS}.alignment"],
        [f"+term@{TERMS}.labels=cross_entropy", f"~{TERMS}.kd"],
        ["source@sources.bank=images", "sources.bank.path=p"],
        ["stages.distillation.learning_rate.milestones=[3,5]"],
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
        "quantizer.momentum=null",
        "quantizer.weight_bits=nan",
        "quantizer.include_zero=perhaps",
        "quantizer.momentum=high",
        "schedule.student_steps=[1,2]",
        "stages.distillation.learning_rate.milestones=[a]",
        "model.mean=0.5",
        "stages.distillation.terms.kd=20",
        "seed=zero",
    ],
)
def test_a_value_of_the_wrong_type_is_refused(override: str) -> None:
    with pytest.raises(ConfigCompositionException) as caught:
        composed(override)
    assert override in str(caught.value)
    assert isinstance(caught.value.__cause__, ValidationError)


@pytest.mark.parametrize(
    "key", ["quantizer.wait_bits", "sources.bank.sice", "stagges", "model.kd", "epochs"]
)
def test_a_mistyped_key_is_refused(key: str) -> None:
    with pytest.raises(ConfigCompositionException, match=rf"Could not override '{key}'"):
        composed(f"{key}=3")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "+quantizer.wait_bits=3",
            "quantizer.wait_bits is no key of the configuration; did you mean",
        ),
        ("+sources.bank.sice=3", "sources.bank.sice is no key of the configuration; did you me"),
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


# --- names of versions before 0.2 ------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("synthesis.bank.size=3", "synthesis.bank.size: synthesis.bank is now sources.bank"),
        ("++synthesis.bank.size=3", "synthesis is now sources, stages.synthesis and stages.cal"),
        ("synthesis=generator", "synthesis=generator is now method=hast_alternating"),
        ("run=[synthesize]", "run is now order, a list of stages"),
        ("schedule=two_stage", "schedule=two_stage is now schedule=released with method=hast"),
        ("schedule.name=two_stage", "schedule.name=two_stage is now method=hast"),
        ("schedule.learning_rate.policy=cosine", "schedule.learning_rate.policy is now schedule.l"),
        ("quantizer.name=lsq", "quantizer.name is now the group quantizer, as quantizer=lsq"),
        ("quantizer.percentile=99", "quantizer.percentile is now quantizer.ranges.percentile"),
        ("artefact=x", "artefact is now artifact"),
    ],
)
def test_an_old_name_is_answered_by_the_new_one(word: str, line: str) -> None:
    with pytest.raises((ConfigurationError, HydraException)) as caught:
        composed(word)
    assert one_line(caught.value, [word]).startswith(line)


def test_a_saved_configuration_of_former_versions_is_answered_likewise() -> None:
    with pytest.raises(ConfigurationError, match=r"^synthesis is now sources, stages\.synthesis"):
        from_saved({"recipe": "former", "synthesis": {"bank": {"size": 3}}})
    with pytest.raises(ConfigurationError, match=r"^quantizer\.name is now the group quantizer"):
        from_saved({"quantizer": {"name": "lsq"}})


def test_every_old_name_is_gone_and_every_new_one_is_there() -> None:
    configurations = [_default(), composed_raw("method=gdfq"), composed_raw("quantizer=percentile")]
    for old, new in RENAMED.items():
        assert renamed(old) == f"{old} is now {new}"
        if "=" not in old:
            assert not any(_has(config, old) for config in configurations), old
        for key in re.findall(r"(?<![=@\w.])[a-z]+(?:\.[a-z_]+)+(?![\w.])", new):
            assert any(_has(config, key) for config in configurations), new
        for group, option in re.findall(r"(?<![\w@.])([a-z]+)=([a-z_]+)", new):
            assert option in ("false", "none") or option in options(group), new


def _has(config: DictConfig, key: str) -> bool:
    above, _, name = key.rpartition(".")
    node = OmegaConf.select(config, above) if above else config
    return isinstance(node, DictConfig) and name in node


def test_a_missing_group_is_named() -> None:
    with pytest.raises(ConfigurationError, match="quantizer is not set"):
        composed("~quantizer")


def test_the_checked_configuration_is_plain_objects() -> None:
    config = composed()
    assert isinstance(config, Config)
    assert type(config.quantizer) is config_module.QuantizerConfig
    assert type(config.sources["bank"]) is ImageBank
    assert type(config.order) is list


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("stages.distillation.terms", "is no dict of keys"),
        ("sources", "is no dict of keys"),
        ("order", "is no list of values"),
        ("modules", "is no list of values"),
    ],
)
def test_a_number_where_several_belong_is_refused(key: str, said: str) -> None:
    """As an interpolation may put it there, whose type is not known before."""
    with pytest.raises(ConfigurationError, match=rf"^{re.escape(key)}=0 {said}$"):
        changed({key: "${seed}"})
