"""Every shipped recipe composes, converts, is constructed; every family takes real steps."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hast_lightning.quantization.spec import QuantizationSpec
from hast_lightning.sources.factory import build_source
from hast_lightning.training.schedule import Action, build_schedule
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import OmegaConf
from torch import nn

from hast_lightning.config import (
    Config,
    ModelConfig,
    config_folder,
    register_schemas,
    to_object,
)
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.graph.blocks import find_taps
from hast_lightning.graph.tracing import trace
from hast_lightning.models import zoo
from hast_lightning.quantization.convert import convert
from hast_lightning.quantization.fake_quant import activation_quantizers, quantized_layers
from hast_lightning.runs import assembly, pipeline
from hast_lightning.training.module import ZeroShotQuantization
from tests.composition import composed, options

EXPERIMENTS = options("experiment")
GROUPS = (
    "model",
    "quantizer",
    "schedule",
    "synthesis",
    "distillation",
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
    "model/torchvision": ["model.name=resnet18"],
    "model/timm": ["model.name=resnet18"],
    "model/pytorchcv": ["model.name=resnet18"],
    "model/own": ["model.factory=package.module:build", "model.input_size=32"],
    "data/npz": ["data.path=images.npz"],
    "synthesis/images": ["synthesis.images.path=pictures"],
    "synthesis/generator": ["schedule.synthesis_steps=1"],
    "synthesis/generator_gdfq": ["schedule.synthesis_steps=1"],
    **{f"model/resnet{n}_cifar10": ["model.pretrained=false"] for n in (20, 32, 44, 56)},
}


def test_there_are_experiments_and_no_group_is_forgotten() -> None:
    assert len(EXPERIMENTS) >= 10
    folders = {path.name for path in config_folder().iterdir() if path.is_dir()}
    # Options of Hydra's own groups: tests/test_launchers.py.
    assert folders == {*GROUPS, "experiment", "hydra"}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_a_whole_configuration(name: str) -> None:
    config = composed(f"+experiment={name}", *RANDOM_WEIGHTS)
    assert config.recipe == name
    # What the name promises is what is done.
    bits = f"w{config.quantizer.weight_bits}a{config.quantizer.activation_bits}"
    assert bits in name.split("_")


@pytest.mark.parametrize("bits", [3, 4, 5])
@pytest.mark.parametrize("network", ["resnet18", "resnet50", "mobilenetv1", "mobilenetv2"])
def test_the_recipes_for_imagenet_are_the_released_ones(network: str, bits: int) -> None:
    """Li et al., CVPR 2023: an epoch is 200 iterations; 4 epochs calibrate, 151 are all."""
    config = composed(f"+experiment={network}_w{bits}a{bits}", *RANDOM_WEIGHTS)
    synthesis, calibration = config.synthesis, config.synthesis.calibration
    assert (config.quantizer.name, config.quantizer.gradient) == ("minmax", "pass_through")
    assert (synthesis.hardness.beta, synthesis.hardness.gamma, synthesis.bns_weight) == (
        0.1,
        0.5,
        1,
    )
    bank = synthesis.bank
    assert (bank.size, bank.batch_size, bank.iterations) == (5120, 256, 1000)
    assert (bank.lr, bank.patience, bank.factor, bank.min_lr) == (0.5, 50, 0.1, 1e-4)
    seen = synthesis.augmentation
    assert (seen.probability, seen.min_scale, seen.max_scale, seen.flip) == (0.5, 0.4, 1.0, 0.5)
    assert (calibration.source, calibration.batch_size) == ("generator", 16)
    assert (calibration.cross_entropy_weight, calibration.bns_weight) == (1.0, 0.1)
    generator = synthesis.generator
    assert (generator.conditioning, generator.latent_dim) == ("batch_norm", 100)
    assert (generator.lr, generator.beta1, generator.beta2) == (1e-3, 0.5, 0.999)
    schedule = config.schedule
    assert (schedule.name, schedule.calibration_steps) == ("two_stage", 4 * 200)
    assert schedule.student_steps == (151 - 4) * 200
    assert schedule.learning_rate.milestones == [(100 - 4) * 200]  # 200 and 350 come too late
    distillation, optimizer = config.distillation, config.distillation.optimizer
    assert distillation.batch_size == 4 * 4
    assert (distillation.kd.weight, distillation.kd.temperature) == (20, 20)
    assert (distillation.alignment.weight, distillation.promotion.eps) == (1000, 0.01)
    assert distillation.cross_entropy_weight == 0
    seen = distillation.augmentation
    assert (seen.probability, seen.min_scale, seen.max_scale, seen.flip) == (1.0, 0.5, 1.0, 0.5)
    assert (optimizer.name, optimizer.lr, optimizer.momentum) == ("sgd", 1e-6, 0.9)
    assert optimizer.weight_decay == 1e-4


@pytest.mark.parametrize(
    ("group", "option"), [(group, option) for group in GROUPS for option in options(group)]
)
def test_every_option_of_every_group_passes_the_checks(group: str, option: str) -> None:
    choices = f"{group}/{option}"
    config = composed(f"{group}={option}", *COMPANIONS.get(choices, []))
    assert isinstance(config, Config)


def test_the_default_is_the_digits_experiment() -> None:
    assert composed() == composed("+experiment=digits_w3a3")


@pytest.mark.parametrize(
    ("override", "known"),
    [
        ("+experiment=digits_w3a4", "digits_w3a3"),
        ("model=resnet21_cifar10", "resnet20_cifar10"),
        ("schedule=alternate", "alternating"),
    ],
)
def test_a_mistyped_option_is_refused_with_those_that_exist(override: str, known: str) -> None:
    with pytest.raises(MissingConfigException, match=known):
        composed(override)


EXPERIMENT = """\
# @package _global_
defaults:
  - override /{group}: {option}
  - _self_
recipe: planted
{key}: {value}
"""


@pytest.mark.parametrize(
    ("lines", "mistake"),
    [
        ({"key": "quantizer", "value": "{wait_bits: 4}"}, "wait_bits"),
        ({"key": "quantiser", "value": "{weight_bits: 4}"}, "quantiser"),
        ({"key": "synthesis", "value": "{bank: {sise: 4}}"}, "sise"),
        ({"key": "quantizer", "value": "{weight_bits: four}"}, "four"),
        ({"group": "modell"}, "modell"),
        ({"option": "resnet21"}, "resnet21"),
    ],
)
def test_a_typo_inside_an_experiment_file_is_refused(
    tmp_path: Path, lines: dict[str, str], mistake: str
) -> None:
    plain = {"group": "model", "option": "digits", "key": "seed", "value": "1"}
    (tmp_path / "experiment").mkdir()
    for name, content in (("good", plain), ("bad", {**plain, **lines})):
        (tmp_path / "experiment" / f"{name}.yaml").write_text(EXPERIMENT.format(**content))
    search = f"hydra.searchpath=[file://{tmp_path}]"
    assert composed("+experiment=good", search).seed == 1
    with pytest.raises(ConfigCompositionException) as caught:
        composed("+experiment=bad", search)
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
    small = ("synthesis.bank.size=4", "synthesis.bank.batch_size=2", "data.holdout=0.5")
    config = composed(f"+experiment={name}", *RANDOM_WEIGHTS, *small)
    network = loaded(config.model)
    source = build_source(
        config.synthesis, network.input_shape, network.num_classes, config.data.holdout
    )
    schedule = build_schedule(config.schedule, source.steps_to_fill, config.run, False)
    module = ZeroShotQuantization(config, network, source, schedule)
    bits = {layer.weight_quantizer.bits for _, layer in quantized_layers(module.student)}
    assert bits == {config.quantizer.weight_bits}
    assert {q.bits for q in activation_quantizers(module.student)} == {
        config.quantizer.activation_bits
    }
    assert sum(schedule.stages.values()) == schedule.iterations > 0
    optimizers = module.configure_optimizers()
    calibrates = config.synthesis.calibration.source == "generator"
    assert len(optimizers) == (3 if calibrates else 2)
    assert not any(parameter.requires_grad for parameter in module.teacher.parameters())


@functools.cache
def network_of(model: str) -> nn.Module:
    return zoo.load(composed(f"model={model}", *RANDOM_WEIGHTS).model).network


@pytest.mark.parametrize("model", SIZES)
def test_layers_activations_and_taps_of_the_published_networks(model: str) -> None:
    layers, activations, taps = SIZES[model]
    network = network_of(model)
    student = convert(network, QuantizationSpec(3, 3))
    assert len(quantized_layers(student)) == layers
    assert len(activation_quantizers(student)) == activations
    assert len(find_taps(trace(network))) == taps


def test_mobilenet_v2_is_aligned_at_its_17_projections() -> None:
    taps = find_taps(trace(network_of("mobilenet_v2")))
    # The first block has no expansion, so that its projection is one place earlier.
    assert taps == ["features_1_conv_2", *(f"features_{i}_conv_3" for i in range(2, 18))]


# --- real steps ------------------------------------------------------------------------------

TINY = (
    "synthesis.bank.size=8",
    "synthesis.bank.batch_size=4",
    "synthesis.bank.iterations=1",
    "synthesis.generator.batch_size=4",
    "synthesis.calibration.batch_size=4",
    "distillation.batch_size=4",
    "schedule.calibration_steps=2",
    "schedule.student_steps=2",
    "data.holdout=0.25",
    "data.batch_size=128",
    "trainer.accelerator=cpu",
    "callbacks.progress=false",
    "callbacks.grid_images=4",
)
FAMILIES = {
    "digits_w3a3": ("model.pretrained=true", "data=digits"),
    "digits_w2a2": (),
    "cifar10_resnet20_w3a3": ("model.input_size=16",),
    "cifar10_resnet20_w4a4_gdfq": ("model.input_size=16",),
    "mobilenetv2_w3a3": ("model.input_size=32", "model.num_classes=5"),
}


@pytest.mark.parametrize(("name", "overrides"), FAMILIES.items(), ids=list(FAMILIES))
def test_a_family_takes_two_steps_of_each_kind(
    tmp_path: Path, name: str, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    modules: list[ZeroShotQuantization] = []
    before: dict[str, torch.Tensor] = {}

    def build(*args: object) -> ZeroShotQuantization:
        modules.append(ZeroShotQuantization(*args))  # type: ignore[arg-type]
        state = modules[0].student.named_parameters()
        before.update({name: value.detach().clone() for name, value in state})
        return modules[0]

    monkeypatch.setattr(assembly, "ZeroShotQuantization", build)
    config = composed(f"+experiment={name}", *RANDOM_WEIGHTS, *TINY, *overrides)
    result = pipeline.run(config, tmp_path, "command")
    assert result is not None
    (module,) = modules
    done = {action: module.schedule.completed(action, module.iteration) for action in Action}
    synthesis = 4 if config.schedule.name == "alternating" else 2
    assert list(done.values()) == [synthesis, 2, 1, 2]
    assert module.iteration == module.schedule.iterations
    # Both kinds of training did something, and nothing broke.
    after = dict(module.student.named_parameters())
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    assert all(quantizer.scale.isfinite() for quantizer in activation_quantizers(module.student))
    assert 0 <= result.teacher_agreement <= 100
    assert (result.quantized_top1 is None) == (config.data.source == "none")
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["recipe"] == name


def test_the_written_configuration_composes_to_the_same_run(tmp_path: Path) -> None:
    config = composed("+experiment=digits_w2a2", *RANDOM_WEIGHTS, *TINY)
    pipeline.run(config, tmp_path, "command")
    register_schemas()
    written = OmegaConf.load(tmp_path / "config.yaml")
    again = OmegaConf.merge(OmegaConf.structured(Config), written)
    assert to_object(again) == config  # type: ignore[arg-type]
