from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hast_lightning.tracking.facts import ablation, describe
from tests.small_runs import small

ORIGIN = {"command": "typed", "git_commit": "abc-dirty", "versions": {"torch": "2"}, "resumes": 0}


def settings(*overrides: str) -> dict[str, Any]:
    return describe(small(*overrides), Path("outputs/run"), ORIGIN, "f00d").settings


def test_the_settings_hold_the_configuration_and_where_it_comes_from() -> None:
    found = settings("seed=3")
    assert found["seed"] == 3
    assert found["quantizer"]["weight_bits"] == 3
    assert (found["git_commit"], found["command_line"]) == ("abc-dirty", "typed")
    assert (found["teacher_checksum"], found["versions"]) == ("f00d", {"torch": "2"})


@pytest.mark.parametrize(
    ("override", "off"),
    [
        ("synthesis.hardness.enabled=false", "hard_sample_synthesis"),
        ("distillation.promotion.enabled=false", "sample_difficulty_promotion"),
        ("distillation.alignment.enabled=false", "feature_alignment"),
        ("distillation.alignment.weight=0", "feature_alignment"),
    ],
)
def test_each_switch_of_the_ablation_is_there_by_name(override: str, off: str) -> None:
    assert all(ablation(small()).values())
    assert [name for name, on in ablation(small(override)).items() if not on] == [off]


def test_a_run_is_named_grouped_and_tagged_after_its_recipe() -> None:
    found = describe(small(), Path("outputs/2026"), ORIGIN, "f00d")
    assert (found.name, found.group) == ("digits_w3a3/2026", "digits_w3a3")
    assert found.tags == ("digits_w3a3", "digits_resnet", "W3A3", "minmax")


def test_the_users_group_and_tags_come_first_and_tags_are_as_short_as_wandb_wants_them() -> None:
    config = small("logger.group=mine", f"logger.tags=[trial,W3A3,{'x' * 70}]")
    found = describe(config, Path("outputs/2026"), ORIGIN, "f00d")
    assert found.group == "mine"
    assert found.tags[:3] == ("trial", "W3A3", "x" * 64)
    assert len(set(found.tags)) == len(found.tags)
