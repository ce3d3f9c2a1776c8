"""What runs are told apart by, and what does not tell them apart."""

from __future__ import annotations

import functools
import re
from dataclasses import asdict
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from hast_lightning.compare.counted import NAMED_BY, NOT_SETTINGS
from hast_lightning.compare.rows import summarize
from hast_lightning.compare.runs import FinishedRun, collect
from hast_lightning.compare.settings import distinguish
from hast_lightning.config import to_object
from tests.compare.test_rows import ROOT, result
from tests.composition import composed_raw

HARDNESS = "stages.synthesis.terms.hard_cross_entropy.by_difficulty"
PROMOTION = "stages.distillation.transforms.promotion.enabled"
ALIGNMENT = "stages.distillation.terms.alignment.enabled"


@functools.cache
def _composed(*groups: str) -> DictConfig:
    return composed_raw(*groups)


def saved(*overrides: str) -> dict[str, Any]:
    """A configuration as it lies beside a result: the default recipe's with some changes."""
    keys = [word for word in overrides if re.match(r"[a-z_]+\.[\w.]+=", word)]
    groups = [word for word in overrides if word not in keys]
    merged = OmegaConf.merge(_composed(*groups), OmegaConf.from_dotlist(keys))
    assert isinstance(merged, DictConfig)
    return asdict(to_object(merged))


def run(*overrides: str, seed: int = 0, bits: int = 3, **changes: Any) -> FinishedRun:
    config = saved(*overrides)
    facts = {
        "method": config["method"]["name"],
        "budget": config["schedule"]["name"],
        "steps_by_stage": dict.fromkeys(config["order"], 1),
        "weight_bits": bits,
        "activation_bits": bits,
    }
    made = result("recipe_w3a3", seed, 90.0, **facts | changes)
    return FinishedRun(made, config)


def words(*runs: FinishedRun) -> list[str]:
    return [str(settings) for settings in distinguish(runs)]


def test_every_key_that_is_named_exists() -> None:
    config = saved()
    for name in (*NOT_SETTINGS, *(f"{g}.{key}" for g, keys in NAMED_BY.items() for key in keys)):
        node: Any = config
        for key in name.split("."):
            assert key in node, name
            node = node[key]


def test_runs_that_differ_in_nothing_need_no_words() -> None:
    assert words(run(), run(seed=1)) == ["", ""]


def test_rows_of_an_ablation_name_what_was_on_of_what_was_switched() -> None:
    off = f"{PROMOTION}=false"
    assert words(run(), run(off)) == ["promotion", "without promotion"]
    assert words(run(), run(off), run(off, f"{ALIGNMENT}=false")) == [
        "alignment + promotion",
        "alignment",
        "without alignment, promotion",
    ]
    nothing = [f"{switch}=false" for switch in (HARDNESS, PROMOTION, ALIGNMENT)]
    assert words(run(), run(*nothing)) == [
        "by_difficulty + alignment + promotion",
        "without by_difficulty, alignment, promotion",
    ]


def test_a_part_of_weight_zero_is_off() -> None:
    rows = words(run("stages.distillation.terms.alignment.weight=0"), run(f"{PROMOTION}=false"))
    assert rows == ["promotion", "alignment"]


def test_a_term_that_a_run_has_beside_the_others_is_a_switch() -> None:
    added = "+term@stages.distillation.terms.cross_entropy=cross_entropy"
    assert words(run(), run(added)) == ["without cross_entropy", "cross_entropy"]


def test_a_part_of_another_kind_is_told_by_its_place() -> None:
    other = "term@stages.calibration.terms.cross_entropy=hard_cross_entropy"
    assert words(run(), run(other)) == [
        "without by_difficulty, terms.cross_entropy=teacher_cross_entropy",
        "by_difficulty, terms.cross_entropy=hard_cross_entropy",
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.threads=1"],
        ["callbacks=quiet"],
        # The default recipe's mirroring is off, its optimizer is Adam, its rate is a cosine.
        ["stages.distillation.transforms.crop_and_flip.flip=0.1"],
        ["stages.distillation.optimizer.momentum=0.1"],
        ["stages.distillation.learning_rate.factor=0.5"],
        ["stages.synthesis.transforms.crop_and_flip.min_scale=0.1"],
        # Nothing reads it but what it is told by.
        ["schedule.generator_steps=9"],
        ["safeguard.tolerance=0.1"],
    ],
)
def test_keys_without_effect_make_no_rows(overrides: list[str]) -> None:
    """And a seed that was run with and without them was run twice."""
    (row,) = summarize([run(), run(*overrides)])
    assert row.seeds == (0,)
    assert len(row.repeats) == 1


def test_a_source_that_no_stage_uses_has_no_settings() -> None:
    bank = "stages.calibration.source=bank"
    assert words(run(bank), run(bank, "sources.calibration.lr=0.5")) == ["", ""]
    assert words(run(), run("sources.calibration.lr=0.5")) == [
        "calibration.lr=0.001",
        "calibration.lr=0.5",
    ]


def test_a_stage_that_did_no_steps_has_no_settings() -> None:
    steps = {"calibration": 1, "distillation": 1}
    runs = [
        run("sources.bank.load=a.safetensors", steps_by_stage=steps),
        run(
            "sources.bank.load=a.safetensors",
            "stages.synthesis.terms.bns.weight=3",
            steps_by_stage=steps,
        ),
    ]
    assert words(*runs) == ["", ""]


def test_a_stage_whose_samples_were_loaded_is_no_ablation() -> None:
    """Its parts are not off: whoever made the images may have had them."""
    steps = {"calibration": 1, "distillation": 1}
    loaded = functools.partial(run, "sources.bank.load=a.safetensors", steps_by_stage=steps)
    (row,) = summarize([run(), loaded(seed=1)])
    assert (str(row.settings), row.seeds) == ("", (0, 1))
    assert words(run(), loaded()) == ["samples=own", "samples=a.safetensors"]
    # What both say, and what runs with images of their own do.
    assert words(run(), loaded(f"{PROMOTION}=false")) == ["promotion", "without promotion"]
    assert words(run(), run(f"{HARDNESS}=false"), loaded(seed=1)) == [
        "by_difficulty",
        "without by_difficulty",
        "samples=loaded",
    ]
    mixed = words(run(), run(f"{HARDNESS}=false"), loaded(), loaded("sources.bank.load=b"))
    assert mixed[2:] == ["samples=a.safetensors", "samples=b"]
    # A run without such a stage has none of its parts.
    assert words(run(), run("order=[calibration,distillation]"))[1].startswith("without ")


def test_rows_of_the_methods_study_name_no_ablation_that_was_not_run() -> None:
    found = summarize(collect([ROOT / "experiments/methods_cifar10_resnet20"]))
    switched = {word for row in found for word, _ in row.settings.switches}
    assert switched == {"alignment", "promotion", "mixing", "spatial", "adaptive"}
    nearest = "reconstruction.learns_scales=true, reconstruction.trains=weights"
    learned = "reconstruction.learns_scales=false, reconstruction.trains=rounding"
    assert {str(row.settings) for row in found if row.method == "reconstruct"} == {
        # At W4A4, where there are two rows, and at W3A3, where one has another quantizer.
        f"quantizer.rounding=nearest, {nearest}",
        f"quantizer.rounding=adaptive, {learned}",
        f"quantizer=lsq, {nearest}",
        f"quantizer=mse, {nearest}",
        f"quantizer.ranges=lsq, quantizer.rounding=adaptive, {learned}",
    }


@pytest.mark.parametrize(
    ("overrides", "shown"),
    [
        (["stages.distillation.terms.kd.weight=2"], "kd.weight=2.0"),
        (["trainer.precision=bf16-mixed"], "trainer.precision=bf16-mixed"),
        (["trainer.devices=2"], "trainer.devices=2"),
        (["schedule.student_steps=9"], "distillation.steps=9"),
        (["quantizer.include_zero=true"], "quantizer.include_zero=true"),
        (["safeguard.images=9"], "safeguard.images=9"),
        (["stages.distillation.optimizer.clip_norm=1"], "optimizer.clip_norm=1.0"),
    ],
)
def test_keys_with_an_effect_make_rows(overrides: list[str], shown: str) -> None:
    rows = summarize([run(seed=0), run(*overrides, seed=1)])
    assert {row.seeds for row in rows} == {(0,), (1,)}
    assert shown in {str(row.settings) for row in rows}


def test_keys_that_end_alike_are_told_apart() -> None:
    weights = ("stages.synthesis.terms.bns.weight=3", "stages.calibration.terms.bns.weight=3")
    assert words(run(weights[0]), run(weights[1])) == [
        "calibration.terms.bns.weight=0.1, synthesis.terms.bns.weight=3.0",
        "calibration.terms.bns.weight=3.0, synthesis.terms.bns.weight=1.0",
    ]


def test_numbers_of_a_part_that_is_off_are_not_told_apart() -> None:
    off = f"{ALIGNMENT}=false"
    other = "stages.distillation.terms.alignment.weight=3"
    (row,) = summarize([run(off), run(off, other, seed=1)])
    assert row.seeds == (0, 1)
    plain = f"{HARDNESS}=false"
    gamma = "stages.synthesis.terms.hard_cross_entropy.gamma=3"
    assert words(run(plain), run(plain, gamma)) == ["", ""]


def test_what_an_option_sets_goes_without_saying() -> None:
    options = ("lsq", "minmax", "mse", "percentile", "deploy")
    bits = ("quantizer.weight_bits=3", "quantizer.activation_bits=3")
    assert words(*(run(f"quantizer={option}", *bits) for option in options)) == [
        f"quantizer={option}" for option in options
    ]
    # Unlike what was set beside it.
    other = run("quantizer=minmax", "quantizer.gradient=clipped")
    assert words(run("quantizer=lsq"), run("quantizer=minmax"), other)[2] == (
        "quantizer=minmax, quantizer.gradient=clipped"
    )
    assert words(run("data=none"), run()) == ["data=none", "data=digits"]


def test_axes_that_are_no_option_together_are_told_by_themselves() -> None:
    learned = run("quantizer=deploy", "ranges@quantizer.ranges=lsq")
    found = words(run("quantizer=lsq"), learned)[1]
    assert "quantizer.placement=integer" in found
    assert "quantizer=" not in found


def test_a_key_that_an_older_version_lacks_has_its_default() -> None:
    old = run()
    del old.saved["stages"]["distillation"]["optimizer"]["clip_norm"]
    assert words(old, run()) == ["", ""]
    assert words(old, run("stages.distillation.optimizer.clip_norm=1")) == [
        "optimizer.clip_norm=null",
        "optimizer.clip_norm=1.0",
    ]


def test_parts_of_a_module_that_is_not_here_are_compared_key_by_key() -> None:
    runs = [run(), run(seed=1)]
    for number, each in enumerate(runs):
        mine = {"kind": "my_own", "weight": 1.0, "enabled": True, "sharpness": number}
        each.saved["stages"]["distillation"]["terms"]["mine"] = mine
    assert words(*runs) == ["mine.sharpness=0", "mine.sharpness=1"]


def test_seeds_of_unequal_schedules_are_not_averaged() -> None:
    rows = summarize([run(), run("schedule.calibration_steps=9", seed=1)])
    assert sorted(row.seeds for row in rows) == [(0,), (1,)]


def test_evaluation_data_of_other_names_are_other_data() -> None:
    files = ("data=npz", "data.path=/a/e.npz"), ("data=npz", "data.path=/a/g.npz")
    assert words(run(*files[0]), run(*files[1], seed=1)) == ["data.path=e.npz", "data.path=g.npz"]
    elsewhere = ("data=npz", "data.path=/b/e.npz")
    assert words(run(*files[0]), run(*elsewhere, seed=1)) == ["", ""]


def test_one_seed_on_other_samples_is_another_experiment() -> None:
    loads = [f"sources.bank.load=bank{number}/samples.safetensors" for number in (5, 6)]
    assert words(run(loads[0]), run(loads[1])) == [
        "samples=bank5/samples.safetensors",
        "samples=bank6/samples.safetensors",
    ]
    assert words(run(), run(loads[0])) == ["samples=own", "samples=bank5/samples.safetensors"]
    # A bank for each seed, as a study has them.
    assert words(run(loads[0]), run(loads[1], seed=1)) == ["", ""]
