"""Configurations that versions before 0.2 saved are read as what they are today."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from hast_lightning.compare.counted import counted
from hast_lightning.compare.former import modern
from hast_lightning.compare.rows import summarize
from hast_lightning.compare.runs import FinishedRun, collect
from hast_lightning.compare.saved import as_config, current_layout
from hast_lightning.tracking.facts import switches
from tests.compare.test_rows import result
from tests.compare.test_settings import saved

ROOT = Path(__file__).parents[2]
QUANTIZERS = ROOT / "experiments" / "cifar10_resnet20_quantizers" / "results"
CONFIGS = sorted((ROOT / "experiments").rglob("config.yaml"))
FIRST = {path.relative_to(ROOT).parts[1]: path for path in reversed(CONFIGS)}
"""A configuration of each study; the others are checked in the slow tests."""
OF_HAST = [path for path in CONFIGS if "cifar10_resnet20_quantizers" in str(path)]
TRAINER = ("trainer.channels_last=false", "trainer.precision=32-true")
CIFAR = ("model.checkpoint=resnet20-12fca82f.th", "data.path=cifar10_test_first1017.npz")


def former(*changes: str, path: Path = OF_HAST[0]) -> dict[str, Any]:
    """A configuration that is committed, with some changes."""
    merged = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(changes)))
    found: Any = OmegaConf.to_container(merged)
    return found


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=() if path in FIRST.values() else pytest.mark.slow)
        for path in CONFIGS
    ],
    ids=lambda path: path.parent.name,
)
def test_every_configuration_in_the_repository_passes_the_checks_of_today(path: Path) -> None:
    config = as_config(current_layout(former(path=path)))
    assert config is not None
    assert set(config.order) <= set(config.stages)


@pytest.mark.parametrize("path", OF_HAST, ids=lambda path: path.parent.name)
def test_those_of_hast_have_its_stages(path: Path) -> None:
    config = as_config(current_layout(former(path=path)))
    assert config is not None
    assert config.order == ["synthesis", "calibration", "distillation"]
    assert all(on for place, on in switches(config).items() if "alignment" in place)


@pytest.mark.parametrize(
    ("folder", "overrides"),
    [
        ("w3a3_percentile_pass_through_seed0", ("quantizer=percentile",)),
        ("w3a3_deploy_clipped_seed0", ("quantizer=deploy", "quantizer.bits=3")),
    ],
)
def test_a_former_configuration_is_that_of_its_recipe(
    folder: str, overrides: tuple[str, ...]
) -> None:
    """Also in the numbers of terms, sources and optimizers: the recipe of the command is there."""
    recipe = ("+experiment=cifar10_resnet20_w3a3_quick", *CIFAR, *TRAINER)
    now = saved(*recipe, *overrides, "sources.bank.load=bank0/samples.safetensors")
    then = modern(former(path=QUANTIZERS / folder / "config.yaml"))
    found = [counted(FinishedRun(result("r", 0, 90.0), each)) for each in (then, now)]
    for each in found:
        assert len(each.values) > 60
    assert found[0].values == found[1].values
    assert {k: v for k, v in found[0].switches.items() if v} == {
        k: v for k, v in found[1].switches.items() if v
    }


def test_turns_with_a_generator_are_a_method_of_today() -> None:
    """Those of cifar10_resnet20_w3a3_alternating_quick, whose results are committed."""
    changes = (
        "schedule.name=alternating",
        "synthesis.source=generator",
        "synthesis.load=null",
        "quantizer.name=minmax",
        "quantizer.gradient=pass_through",
        "quantizer.include_zero=false",
        "quantizer.first_and_last_8bit=false",
        "distillation.augmentation.probability=0",
    )
    config = as_config(modern(former(*changes)))
    recipe = ("+experiment=cifar10_resnet20_w3a3_alternating_quick", *CIFAR)
    now = as_config(saved(*recipe, *TRAINER))
    assert config is not None and now is not None
    assert config.order == now.order == ["calibration", "alternation"]
    found = [
        counted(FinishedRun(result("r", 0, 90.0), each))
        for each in (modern(former(*changes)), saved(*recipe, *TRAINER))
    ]
    assert found[0].values == found[1].values


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ("synthesis.hardness.enabled=false", "synthesis.terms.hard_cross_entropy.by_difficulty"),
        ("distillation.promotion.enabled=false", "distillation.transforms.promotion"),
        ("distillation.alignment.enabled=false", "distillation.terms.alignment"),
        ("distillation.kd.weight=0", "distillation.terms.kd"),
    ],
)
def test_the_switches_of_a_former_ablation_are_those_of_today(change: str, place: str) -> None:
    on, off = (as_config(modern(former(*changes))) for changes in ((), (change,)))
    assert on is not None and off is not None
    assert {k for k, v in switches(on).items() if v != switches(off)[k]} == {place}


def test_own_images_are_a_source_that_needs_no_synthesis() -> None:
    config = as_config(
        modern(former("synthesis.source=images", "synthesis.load=null", "synthesis.images.path=x"))
    )
    assert config is not None
    assert config.order == ["calibration", "distillation"]
    assert config.sources["bank"].kind == "images"


def test_the_study_of_quantizers_is_told_apart_by_their_options() -> None:
    rows = {(row.bits[0], str(row.settings)): row for row in summarize(collect([QUANTIZERS]))}
    assert sorted(rows) == [
        (3, "quantizer=deploy"),
        (3, "quantizer=mse"),
        (3, "quantizer=mse, quantizer.gradient=pass_through"),
        (3, "quantizer=percentile"),
        (4, "quantizer=deploy"),
        (4, "quantizer=deploy, quantizer.gradient=pass_through"),
        (4, "quantizer=mse"),
        (4, "quantizer=percentile"),
    ]
    assert str(rows[3, "quantizer=percentile"].top1) == "83.87"
    assert all(row.without_synthesis for row in rows.values())
