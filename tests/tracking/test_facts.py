from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hast_lightning.tracking.facts import describe, switches
from tests.small_runs import small

NAME = "hast_digits_resnet_w3a3"
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
        (
            "stages.synthesis.terms.hard_cross_entropy.by_difficulty=false",
            ["synthesis.terms.hard_cross_entropy.by_difficulty"],
        ),
        (
            "stages.synthesis.terms.hard_cross_entropy.weight=0",
            [
                "synthesis.terms.hard_cross_entropy",
                "synthesis.terms.hard_cross_entropy.by_difficulty",
            ],
        ),
        (
            "stages.distillation.transforms.promotion.enabled=false",
            ["distillation.transforms.promotion"],
        ),
        ("stages.distillation.terms.alignment.enabled=false", ["distillation.terms.alignment"]),
        ("stages.distillation.terms.alignment.weight=0", ["distillation.terms.alignment"]),
    ],
)
def test_every_term_and_transform_is_a_switch_and_so_is_what_it_can_switch(
    override: str, off: list[str]
) -> None:
    before, after = switches(small()), switches(small(override))
    assert before.keys() == after.keys()
    assert [place for place, on in after.items() if on != before[place]] == off
    assert all(before[place] for place in off)
    facts = settings(override)["switches"]
    assert [facts[place.replace(".", "/")] for place in off] == [False] * len(off)


def test_switches_are_of_the_stages_that_run_and_of_those_that_take_turns() -> None:
    assert not any("synthesis" in place for place in switches(small("order=[calibration]")))
    alternating = switches(small("method=gdfq"))
    assert alternating["alternation.synthesis.terms.cross_entropy"]
    assert alternating["alternation.distillation.terms.kd"]


def test_a_run_is_named_grouped_and_tagged_after_its_recipe() -> None:
    found = describe(small(), Path("outputs/2026"), ORIGIN, "f00d")
    assert (found.name, found.group) == (f"{NAME}/2026", NAME)
    assert found.tags == (NAME, "hast", "digits_resnet", "W3A3", "minmax")


def test_the_users_group_and_tags_come_first_and_tags_are_as_short_as_wandb_wants_them() -> None:
    config = small("logger.group=mine", f"logger.tags=[trial,W3A3,{'x' * 70}]")
    found = describe(config, Path("outputs/2026"), ORIGIN, "f00d")
    assert found.group == "mine"
    assert found.tags[:3] == ("trial", "W3A3", "x" * 64)
    assert len(set(found.tags)) == len(found.tags)
