"""Every shipped recipe and method composes, converts, is constructed and takes real steps."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import re
import shlex
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import OmegaConf
from torch import nn

from hast_lightning.config import (
    Config,
    ModelConfig,
    QuantizerConfig,
    ScheduleConfig,
    config_folder,
    from_saved,
    register_recipes,
    to_object,
)
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.core.part import parts
from hast_lightning.core.source import TrainedSource
from hast_lightning.graph.blocks import find_taps
from hast_lightning.graph.tracing import trace
from hast_lightning.models import zoo
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.fake_quant import activation_quantizers, quantized_layers
from hast_lightning.runs import pipeline
from hast_lightning.runs.assembly import build_sources
from hast_lightning.training.module import ZeroShotQuantization
from tests.command_line import TINY
from tests.composition import composed, options
from tests.small_methods import METHODS, small_method
from tests.small_runs import build_module, fit, small_raw

EXPERIMENTS, SCHEDULES = options("experiment"), options("schedule")
GROUPS = (
    "model",
    "quantizer",
    "schedule",
    "method",
    "data",
    "export",
    "trainer",
    "logger",
    "callbacks",
    "sweep",
)
RANDOM_WEIGHTS = ("model.pretrained=false", "model.checkpoint=null", "data=none")
# What an option needs beside itself to be a whole configuration.
COMPANIONS = {
    "model=torchvision": ["model.name=resnet18"],
    "model=timm": ["model.name=resnet18"],
    "model=pytorchcv": ["model.name=resnet18"],
    "model=transformers": [
        "model.config_file=config.json",
        "model.input_size=32",
        "method=self_calibration_style",
    ],
    "model=mlperf_keywords": ["model.factory=package.module:build"],
    "data=wav": [
        "data.path=recordings",
        "model=mlperf_keywords",
        "model.factory=package.module:build",
        "method=without_training",
    ],
    "model=own": ["model.factory=package.module:build", "model.input_size=32"],
    "data=npz": ["data.path=images.npz"],
    **{f"model=resnet{n}_cifar10": ["model.pretrained=false"] for n in (20, 32, 44, 56)},
}
# The bits that each family of recipes was published or measured with.
PUBLISHED = {
    **dict.fromkeys(("resnet18_{}", "resnet50_{}", "mobilenetv1_{}", "mobilenetv2_{}"), (3, 4, 5)),
    **dict.fromkeys(("cifar10_resnet20_{}", "cifar100_resnet20_{}"), (3, 4, 5)),
    "cifar10_resnet20_{}_quick": (3, 4, 5),
    "cifar10_resnet20_{}_recommended": (3, 4),
    "cifar10_resnet20_{}_alternating": (3,),
    "cifar10_resnet20_{}_alternating_quick": (3,),
    "cifar10_resnet20_{}_gdfq": (4,),
    "mobilenetv1_x025_{}_quick": (4, 5, 8),
    "mobilenetv1_x025_{}_recommended": (4, 5, 8),
    "digits_{}": (2, 3),
}


def test_no_group_is_forgotten() -> None:
    folders = {path.name for path in config_folder().iterdir() if path.is_dir()}
    # Options of Hydra's own groups: tests/test_launchers.py. Those of parts hold a budget or are a
    # method's on one network, and are part of what is composed here.
    assert folders - set(parts()) == {*GROUPS, "debug", "experiment", "tuned", "hydra"}


# --- heads of files --------------------------------------------------------------------------

HEAD = re.compile(
    r"# Command: +(?P<command>.+?)\n# Expect: +(?P<expect>.+?)\n"
    r"# Takes: +(?P<takes>.+?)(?=\n[^#]|$)",
    re.DOTALL,
)
TIME = re.compile(
    r"\b(second|minute|quarter|hour|evening|day|night)s?\b.* on \w+.*\b(cores?|GPUs?|machine)\b"
)
SOURCE = re.compile(r"\(.*\)|experiments/|[Pp]ublished|not (been )?measured|follows from")
HEADED = [
    (group, option) for group in ("experiment", "method", "schedule") for option in options(group)
]


def head_of(group: str, option: str) -> dict[str, str]:
    """Command, expected result and time in the head of a file, each in one line."""
    text = (config_folder() / group / f"{option}.yaml").read_text(encoding="utf-8")
    found = HEAD.search(text)
    assert found is not None, f"{group}/{option}.yaml has no head: Command, Expect, Takes"
    return {name: re.sub(r"\n# *", " ", value) for name, value in found.groupdict().items()}


@pytest.mark.parametrize(("group", "option"), HEADED)
def test_a_head_says_what_to_expect_and_how_long_it_takes(group: str, option: str) -> None:
    head = head_of(group, option)
    assert SOURCE.search(head["expect"]), head["expect"]
    assert TIME.search(head["takes"]), head["takes"]


@pytest.mark.parametrize(("group", "option"), HEADED)
def test_the_command_of_a_head_composes_and_chooses_that_file(group: str, option: str) -> None:
    command = re.sub(r"<[^>]+>", "given", head_of(group, option)["command"])
    python, dash, package, *words = shlex.split(command)
    assert (python, dash, package) == ("python", "-m", "hast_lightning")
    config = composed(*words)
    if group == "experiment":
        (named,) = (word.partition("=")[2] for word in words if word.startswith("+experiment="))
        assert config.recipe == named
        # The name of a family, with its bits where it has none of its own.
        assert re.sub(r"_w\da\d", "", named) == re.sub(r"_w\da\d", "", option)
        # What the name promises is what is done.
        bits = f"w{config.quantizer.weight_bits}a{config.quantizer.activation_bits}"
        assert bits in named.split("_") or named == option
    elif group == "method":
        assert config.method.name == option
    else:
        assert config.schedule.name == option


# --- recipes ---------------------------------------------------------------------------------


def test_every_recipe_that_was_published_or_measured_has_a_name() -> None:
    for pattern, bits in PUBLISHED.items():
        for number in bits:
            name = pattern.format(f"w{number}a{number}")
            register_recipes([f"+experiment={name}"])
            family = pattern.replace("_{}", "")
            assert family in EXPERIMENTS
            assert name in EXPERIMENTS or f"{name}.yaml" in ConfigStore.instance().list(
                "experiment"
            )


@pytest.mark.parametrize("name", ["digits_w9a9", "digits_w3", "digitz_w3a3", "digits_w3a3_"])
def test_a_name_that_is_no_familys_is_refused(name: str) -> None:
    with pytest.raises(MissingConfigException, match="digits"):
        composed(f"+experiment={name}")


@pytest.mark.parametrize("network", ["resnet18", "mobilenetv2"])
def test_the_recipes_for_imagenet_are_the_released_ones(network: str) -> None:
    """Li et al., CVPR 2023: an epoch is 200 iterations; 4 epochs calibrate, 151 are all."""
    config = composed(f"+experiment={network}_w4a5", *RANDOM_WEIGHTS)
    quantizer = config.quantizer
    assert (quantizer.weight_bits, quantizer.activation_bits) == (4, 5)
    assert (quantizer.name, quantizer.gradient) == ("minmax", "pass_through")
    synthesis, calibration, distillation = config.ordered.values()
    hard, bns = (synthesis.terms[name] for name in ("hard_cross_entropy", "bns"))
    assert (hard.weight, hard.gamma, hard.by_difficulty, bns.weight) == (0.1, 0.5, True, 1)
    bank = config.sources["bank"]
    assert (bank.size, bank.batch_size, bank.iterations) == (5120, 256, 1000)
    assert (bank.lr, bank.patience, bank.factor, bank.min_lr) == (0.5, 50, 0.1, 1e-4)
    seen = synthesis.transforms["crop_and_flip"]
    assert seen.enabled
    assert (seen.probability, seen.min_scale, seen.max_scale, seen.flip) == (0.5, 0.4, 1.0, 0.5)
    generator = config.sources[calibration.source]
    assert (calibration.steps, calibration.batch_size, generator.batch_size) == (4 * 200, 16, 16)
    terms = calibration.terms
    assert (terms["cross_entropy"].weight, terms["bns"].weight) == (1.0, 0.1)
    assert (generator.conditioning, generator.latent_dim) == ("batch_norm", 100)
    assert (generator.lr, generator.beta1, generator.beta2) == (1e-3, 0.5, 0.999)
    assert distillation.steps == (151 - 4) * 200
    assert distillation.learning_rate.policy == "multistep"
    assert distillation.learning_rate.milestones == [(100 - 4) * 200]  # 200 and 350 come too late
    assert distillation.batch_size == 4 * 4
    assert set(distillation.terms) == {"kd", "alignment"}
    kd, alignment = distillation.terms["kd"], distillation.terms["alignment"]
    assert (kd.weight, kd.temperature, kd.reduction) == (20, 20, "batchmean")
    promotion = distillation.transforms["promotion"]
    assert (alignment.weight, promotion.eps, promotion.enabled) == (1000, 0.01, True)
    seen = distillation.transforms["crop_and_flip"]
    assert (seen.probability, seen.min_scale, seen.max_scale, seen.flip) == (1.0, 0.5, 1.0, 0.5)
    optimizer = distillation.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.momentum) == ("sgd", 1e-6, 0.9)
    assert optimizer.weight_decay == 1e-4


def side_by_side() -> list[list[str]]:
    """Every option without a head, which would compose it: in a row those that go together."""
    columns = {
        group: [f"{group}={name}" for name in options(group) if (group, name) not in HEADED]
        for group in GROUPS
    }
    # A network has its data, and data have their network.
    data = [[word] for word in columns.pop("data")]
    return [[word for word in row if word] for row in zip_longest(*columns.values())] + data


@pytest.mark.parametrize("words", side_by_side(), ids="-".join)
def test_every_option_of_every_group_passes_the_checks(words: list[str]) -> None:
    companions = [other for word in words for other in COMPANIONS.get(word, [])]
    assert isinstance(composed(*words, *companions), Config)


def test_the_default_is_the_digits_experiment() -> None:
    named = composed("+experiment=digits_w3a3")
    assert settings(composed()) == {**settings(named), "recipe": "hast_digits_resnet_w3a3"}


def settings(config: Config) -> dict[str, object]:
    """A configuration as plain values; parts have no equality, being modules."""
    return dataclasses.asdict(config)


def test_a_written_recipe_in_turns_composes_to_the_same() -> None:
    config = composed("+experiment=cifar10_resnet20_w4a4_gdfq", *RANDOM_WEIGHTS)
    written = OmegaConf.to_container(OmegaConf.create(settings(config)))
    assert settings(to_object(from_saved(written))) == settings(config)


EXPERIMENT = """\
# @package _global_
defaults:
  - override /model: digits
  - _self_
recipe: planted
{key}: {value}
"""


TYPOS = {
    "quantiser": "{weight_bits: 4}",
    "sources": "{bank: {sise: 4}}",
    "stages": "{distillation: {terms: {kd: {wait: 4}}}}",
}


def test_a_typo_inside_an_experiment_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    search = f"hydra.searchpath=[file://{tmp_path}]"
    for key, value in {"seed": "1", **TYPOS}.items():
        text = EXPERIMENT.format(key=key, value=value)
        (tmp_path / "experiment" / f"{key}.yaml").write_text(text)
    assert composed("+experiment=seed", search).seed == 1
    for key, mistake in zip(TYPOS, ("quantiser", "sise", "wait"), strict=True):
        with pytest.raises(ConfigCompositionException) as caught:
            composed(f"+experiment={key}", search)
        assert mistake in f"{caught.value} {caught.value.__cause__}"


# --- the networks of the experiments ---------------------------------------------------------


# The number of quantized layers, of activations and of blocks to align.
SIZES = {"resnet20_cifar10": (20, 19, 9), "mobilenet_v2": (53, 35, 17)}


@pytest.fixture(scope="module")
def loaded() -> Callable[[ModelConfig], PretrainedNetwork]:
    """Networks by their configuration, each drawn once: several experiments have the same."""
    networks: dict[str, PretrainedNetwork] = {}

    def load(config: ModelConfig) -> PretrainedNetwork:
        if repr(config) not in networks:
            networks[repr(config)] = zoo.load(config)
        return copy.deepcopy(networks[repr(config)])

    return load


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiments_network_is_converted_and_the_module_constructed(
    name: str, loaded: Callable[[ModelConfig], PretrainedNetwork]
) -> None:
    few = ("schedule.images=4", "schedule.image_batch=2", "data.holdout=0.5")
    config = composed(f"+experiment={name}", *RANDOM_WEIGHTS, *few)
    network = loaded(config.model)
    module = ZeroShotQuantization(config, network, build_sources(config, network))
    bits = {layer.weight_quantizer.bits for _, layer in quantized_layers(module.student)}
    assert bits == {config.quantizer.weight_bits}
    assert {q.bits for q in activation_quantizers(module.student)} == {
        config.quantizer.activation_bits
    }
    assert list(module.agenda.stages) == config.order
    for source in module.sources.values():
        if isinstance(source, TrainedSource):
            assert source.optimizers()
    assert not any(parameter.requires_grad for parameter in module.teacher.parameters())


@functools.cache
def network_of(model: str) -> nn.Module:
    return zoo.load(composed(f"model={model}", *RANDOM_WEIGHTS).model).network


@pytest.mark.parametrize("model", SIZES)
def test_layers_activations_and_taps_of_the_published_networks(model: str) -> None:
    layers, activations, taps = SIZES[model]
    network = network_of(model)
    student = convert(network, QuantizerConfig(weight_bits=3, activation_bits=3))
    assert len(quantized_layers(student)) == layers
    assert len(activation_quantizers(student)) == activations
    assert len(find_taps(trace(network))) == taps


def test_mobilenet_v2_is_aligned_at_its_17_projections() -> None:
    taps = find_taps(trace(network_of("mobilenet_v2")))
    # The first block has no expansion, so that its projection is one place earlier.
    assert taps == ["features_1_conv_2", *(f"features_{i}_conv_3" for i in range(2, 18))]


# --- methods ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "schedules",
    [("demo",), pytest.param(SCHEDULES, marks=pytest.mark.slow)],
    ids=["demo", "all"],
)
def test_a_method_composes_with_every_schedule(method: str, schedules: Sequence[str]) -> None:
    # Its command, in the head of its file, composes it with what it goes with otherwise.
    composed_once = small_raw(f"method={method}", "quantizer=minmax")
    for schedule in schedules:
        config = copy.deepcopy(composed_once)
        budget = OmegaConf.load(config_folder() / "schedule" / f"{schedule}.yaml")
        config.schedule = OmegaConf.merge(OmegaConf.structured(ScheduleConfig), budget)
        built = to_object(config)
        assert (built.method.name, built.schedule.name) == (method, schedule)
        # The budget reaches what it is for.
        banks = [s for s in built.sources.values() if s.kind == "image_bank"]
        if built.schedule.images is not None:
            assert all(bank.size == built.schedule.images for bank in banks)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_says_where_it_is_from(method: str) -> None:
    described = to_object(small_raw(f"method={method}", "quantizer=minmax")).method
    assert described.name == method
    assert described.title
    assert re.search(r"\b(19|20)\d\d\b", described.paper), described.paper
    assert str(described.year) in described.paper


@pytest.mark.parametrize("method", METHODS)
def test_a_method_takes_steps_of_every_stage(method: str, tmp_path: Path) -> None:
    config = small_method(method, tmp_path)
    module = build_module(config)
    before = {name: value.detach().clone() for name, value in module.student.named_parameters()}
    fit(module)
    assert module.iteration == module.agenda.iterations
    # Training did something where there is some, and nothing broke.
    after = dict(module.student.named_parameters())
    assert all(value.isfinite().all() for value in after.values())
    changed = any(not torch.equal(value, before[name]) for name, value in after.items())
    assert changed == any(stage.trains_student for stage in module.stages.values())
    assert all(quantizer.scale.isfinite() for quantizer in activation_quantizers(module.student))


# --- whole runs ------------------------------------------------------------------------------

FAMILIES = {
    "digits_w3a3": ("digits_resnet", ("model.pretrained=true", "data=digits")),
    "mobilenetv2_w3a3": ("mobilenet_v2", ("model.input_size=32", "model.num_classes=5")),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_recipe_is_run_whole_without_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model, overrides = FAMILIES[name]

    def download(*_: object, **__: object) -> None:
        raise AssertionError("nothing is to be downloaded")

    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    few = ("schedule.images=8", "schedule.image_batch=4", "data.holdout=0.25")
    config = composed(f"+experiment={name}", *RANDOM_WEIGHTS, *TINY, *few, *overrides)
    result = pipeline.run(config, tmp_path / "run", "command")
    assert result is not None
    assert not (tmp_path / "cache").exists()
    assert result.model == model
    assert list(result.steps_by_stage) == config.order
    assert all(result.steps_by_stage.values())
    assert 0 <= result.teacher_agreement <= 100
    assert (result.quantized_top1 is None) == (config.data.source == "none")
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["recipe"] == name
    # The written configuration composes to the same run.
    written = OmegaConf.to_container(OmegaConf.load(tmp_path / "run" / "config.yaml"))
    assert settings(to_object(from_saved(written))) == settings(config)
