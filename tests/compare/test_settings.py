"""What runs are told apart by, and what does not tell them apart."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from hast_lightning.compare.rows import summarize
from hast_lightning.compare.runs import FinishedRun, flat
from hast_lightning.compare.settings import IDLE, NOT_SETTINGS, PARTS, distinguish
from tests.compare.test_rows import result
from tests.composition import composed

HARDNESS, PROMOTION, ALIGNMENT = (switch for switch, _ in PARTS.values())


def config(*overrides: str, **changes: Any) -> dict[str, Any]:
    """A configuration as it lies beside a result: the default recipe's with some changes."""
    return dict(flat(asdict(composed(*overrides)))) | changes


def run(*overrides: str, seed: int = 0, bits: int = 3, **changes: Any) -> FinishedRun:
    made = result("recipe_w3a3", seed, 90.0, weight_bits=bits, activation_bits=bits)
    return FinishedRun(made, config(*overrides, **changes))


def words(*runs: FinishedRun) -> list[str]:
    return [str(settings) for settings in distinguish(runs)]


def test_every_key_that_is_named_exists() -> None:
    named = {*NOT_SETTINGS, *IDLE, *(key for keys in PARTS.values() for key in keys)}
    known = config()
    for name in named:
        assert any(f"{key}.".startswith(f"{name}.") for key in known), name


def test_runs_that_differ_in_nothing_need_no_words() -> None:
    assert words(run(), run(seed=1)) == ["", ""]


def test_rows_of_an_ablation_name_every_part_that_was_on() -> None:
    """Also those that no run went without: only promotion off is not none."""
    off = f"{PROMOTION}=false"
    assert words(run(), run(off)) == ["hardness + promotion + alignment", "hardness + alignment"]
    assert words(run(off), run(off, f"{ALIGNMENT}=false")) == ["hardness + alignment", "hardness"]


def test_none_is_a_run_without_any_part() -> None:
    nothing = [f"{switch}=false" for switch in (HARDNESS, PROMOTION, ALIGNMENT)]
    assert words(run(*nothing), run(*nothing[:2])) == ["none", "alignment"]


def test_a_part_of_weight_zero_is_off() -> None:
    rows = words(
        run("distillation.alignment.weight=0"),
        run("distillation.promotion.enabled=false"),
    )
    assert rows == [
        "hardness + promotion, alignment.weight=0.0",
        "hardness + alignment, alignment.weight=50.0",
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.threads=1"],
        ["callbacks=quiet"],
        ["synthesis.images.max_images=5"],
        ["distillation.augmentation.flip=0.1"],
        ["distillation.optimizer.momentum=0.1"],
        ["quantizer.percentile=99"],
        ["schedule.learning_rate.factor=0.5"],
    ],
)
def test_keys_without_effect_make_no_rows(overrides: list[str]) -> None:
    """And a seed that was run with and without them was run twice."""
    (row,) = summarize([run(), run(*overrides)])
    assert row.seeds == (0,)
    assert len(row.repeats) == 1


@pytest.mark.parametrize(
    ("overrides", "shown"),
    [
        (["distillation.kd.weight=2"], "kd.weight=2.0"),
        (["trainer.precision=bf16-mixed"], "trainer.precision=bf16-mixed"),
        (["trainer.devices=2"], "trainer.devices=2"),
        (["schedule.student_steps=9"], "schedule.student_steps=9"),
        (["quantizer.include_zero=true"], "quantizer.include_zero=true"),
        (["distillation.optimizer.clip_norm=1"], "optimizer.clip_norm=1.0"),
    ],
)
def test_keys_with_an_effect_make_rows(overrides: list[str], shown: str) -> None:
    rows = summarize([run(seed=0), run(*overrides, seed=1)])
    assert {row.seeds for row in rows} == {(0,), (1,)}
    assert shown in {str(row.settings) for row in rows}


def test_numbers_of_a_part_that_is_off_are_not_told_apart() -> None:
    off = f"{ALIGNMENT}=false"
    (row,) = summarize([run(off), run(off, "distillation.alignment.weight=3", seed=1)])
    assert row.seeds == (0, 1)


def test_what_an_option_sets_goes_without_saying() -> None:
    assert words(run("quantizer=lsq"), run("quantizer=minmax"), run("quantizer=mse")) == [
        "quantizer.name=lsq",
        "quantizer.name=minmax",
        "quantizer.name=mse",
    ]
    # Unlike what was set beside it.
    other = run("quantizer=minmax", "quantizer.gradient=clipped")
    assert words(run("quantizer=lsq"), run("quantizer=minmax"), other)[2] == (
        "quantizer.gradient=clipped, quantizer.name=minmax"
    )


def test_a_key_that_an_older_version_lacks_has_its_default() -> None:
    older = run()
    lacking = {key: value for key, value in older.config.items() if "clip_norm" not in key}
    old = FinishedRun(older.result, lacking)
    assert words(old, run()) == ["", ""]
    assert words(old, run("distillation.optimizer.clip_norm=1")) == [
        "optimizer.clip_norm=null",
        "optimizer.clip_norm=1.0",
    ]


def test_seeds_of_unequal_schedules_are_not_averaged() -> None:
    rows = summarize([run(), run("schedule.calibration_steps=9", seed=1)])
    assert sorted(row.seeds for row in rows) == [(0,), (1,)]


def test_evaluation_data_of_other_names_are_other_data() -> None:
    files = ("data=npz", "data.path=/a/e.npz"), ("data=npz", "data.path=/a/g.npz")
    assert words(run(*files[0]), run(*files[1], seed=1)) == ["data.path=e.npz", "data.path=g.npz"]
    elsewhere = ("data=npz", "data.path=/b/e.npz")
    assert words(run(*files[0]), run(*elsewhere, seed=1)) == ["", ""]


def test_one_seed_on_other_samples_is_another_experiment() -> None:
    loads = [f"synthesis.load=bank{number}/samples.safetensors" for number in (5, 6)]
    assert words(run(loads[0]), run(loads[1])) == [
        "samples=bank5/samples.safetensors",
        "samples=bank6/samples.safetensors",
    ]
    assert words(run(), run(loads[0])) == ["samples=own", "samples=bank5/samples.safetensors"]
    # A bank for each seed, as a study has them.
    assert words(run(loads[0]), run(loads[1], seed=1)) == ["", ""]
