"""Parts in words, whichever they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from hast_lightning.core.part import parts
from hast_lightning.records.folder import Origin
from hast_lightning.report.content import StageLines
from hast_lightning.report.parts import about, settings_of, stage_lines
from hast_lightning.runs.assembly import build
from hast_lightning.stages.learning_rate import LearningRate
from hast_lightning.stages.optimizer import Optimizer
from tests.small_runs import small


def lines(*overrides: str) -> dict[str, StageLines]:
    run = build(small(*overrides), Path("run"), Origin("typed", None, {}))
    return {stage.name: stage for stage in stage_lines(run)}


def test_every_part_says_in_one_sentence_what_it_is() -> None:
    for group, classes in parts().items():
        for name, cls in classes.items():
            text = about(cls.__new__(cls))
            assert text.endswith((".", ")")) and "`" not in text, (group, name, text)
            assert len(text) < 250, (group, name)


def test_a_part_that_is_off_is_there_with_its_key_and_says_so() -> None:
    found = lines(
        "stages.distillation.transforms.promotion.eps=0.5",
        "stages.distillation.terms.alignment.enabled=false",
    )
    shown = {part.key: part for stage in found.values() for part in stage.parts}
    promotion = shown["stages.distillation.transforms.promotion"]
    assert (promotion.enabled, promotion.settings, promotion.weight) == (True, "eps 0.5", "")
    alignment = shown["stages.distillation.terms.alignment"]
    assert (alignment.enabled, alignment.name) == (False, "Feature alignment loss")
    hard = shown["stages.synthesis.terms.hard_cross_entropy"]
    assert (hard.weight, hard.settings) == ("10", "gamma 2, by difficulty, not detached")
    plain = lines("stages.synthesis.terms.hard_cross_entropy.by_difficulty=false")
    (hard,) = [p for p in plain["synthesis"].parts if p.key.endswith("hard_cross_entropy")]
    assert hard.settings == "not by difficulty, not detached"


def test_stages_that_take_turns_are_told_with_the_stage_that_they_are_in() -> None:
    found = lines("method=gdfq")
    assert list(found) == [
        "calibration",
        "alternation",
        "alternation, synthesis",
        "alternation, distillation",
    ]
    assert [stage.steps for stage in found.values()] == [2, 3, None, None]
    keys = [part.key for part in found["alternation, distillation"].parts]
    assert "stages.alternation.distillation.terms.kd" in keys


@pytest.mark.parametrize(
    ("group", "text"),
    [
        (Optimizer(name="adam", lr=1e-3, weight_decay=0), "name adam, learning rate 0.001"),
        (LearningRate(policy="cosine"), "policy cosine, warmup steps 0"),
        (LearningRate(milestones=[3200, 7200]), "milestones 3,200/7,200, factor 0.1"),
    ],
)
def test_settings_that_nothing_reads_are_not_told(group: object, text: str) -> None:
    assert text in settings_of(group)
    assert ("momentum" in settings_of(group)) == ("sgd" in text)


def test_the_optimizer_of_a_stage_is_told_by_its_name() -> None:
    told = lines()["distillation"].settings
    assert "optimizer: adam, learning rate 0.001, weight decay 0;" in told
    assert "learning rate: cosine" in told
