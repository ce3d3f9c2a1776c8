from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from hast_lightning.cli import main
from hast_lightning.config import Config, LoggerConfig
from hast_lightning.core.part import parts
from hast_lightning.errors import ConfigurationError
from hast_lightning.tracking import dashboard
from hast_lightning.tracking.dashboard import ablated_switches, build_dashboard, save_dashboard
from hast_lightning.tracking.facts import switches
from tests.command_line import call
from tests.composition import composed, options

pytest.importorskip("wandb_workspaces", reason="the extra dashboard is not installed")


@pytest.fixture
def _no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


@functools.cache
def method(*overrides: str) -> Config:
    return composed(*overrides)


def methods() -> list[Config]:
    """Methods of two papers, one of which takes turns."""
    return [method("method=gdfq"), method("method=hast"), method("method=hast_alternating")]


def sections(found: Sequence[Config]) -> dict[str, list[dict[str, Any]]]:
    """What would be sent to wandb: panels by the name of their section."""
    workspace = build_dashboard("me", "project", found)
    view = workspace._to_model().model_dump(by_alias=True, exclude_none=True)
    assert (view["entity"], view["project"]) == ("me", "project")
    shown = view["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in shown}


def lines(panels: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The line plots among them, by their title."""
    drawn = [panel for panel in panels if panel["viewType"] == "Run History Line Plot"]
    return {panel["config"]["chartTitle"]: panel["config"] for panel in drawn}


def test_there_is_a_section_for_every_question() -> None:
    assert list(sections(methods())) == [
        "Results",
        "Evaluation",
        "Synthesis",
        "Synthesis, terms of one paper alone",
        "Calibration",
        "Calibration, terms of one paper alone",
        "Distillation",
        "Distillation, terms of one paper alone",
        "Synthetic images",
        "Difficulty and confidence",
        "Layers",
    ]


def test_terms_are_where_the_methods_have_them() -> None:
    found = {name: list(lines(panels)) for name, panels in sections(methods()).items()}
    assert found["Synthesis"] == ["synthesis/bns"]
    assert found["Synthesis, terms of one paper alone"] == [
        "synthesis/hard_cross_entropy",
        "synthesis/cross_entropy",
    ]
    assert found["Distillation"] == ["distillation/kd", "distillation/learning_rate"]
    assert found["Distillation, terms of one paper alone"] == [
        "distillation/alignment",
        "distillation/cross_entropy",
    ]


def test_one_method_has_its_terms_in_one_place() -> None:
    found = sections([method("method=hast")])
    assert not any("alone" in name for name in found)
    assert list(lines(found["Distillation"])) == [
        "distillation/kd",
        "distillation/alignment",
        "distillation/learning_rate",
    ]


PROBE = """
from torch import Tensor
from hast_lightning.core.batch import Seen
from hast_lightning.core.part import part
from hast_lightning.core.term import Term

@part("term", "probe")
class Probe(Term):
    "A term of a user's own."

    title = "Probe"

    def forward(self, seen: Seen) -> Tensor:
        return seen.teacher.logits.mean()
"""


@pytest.fixture
def _probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module of the user's with a term, which is forgotten again."""
    (tmp_path / "a_module_of_mine.py").write_text(PROBE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    cast("dict[str, object]", parts()["term"]).pop("probe")


@pytest.mark.usefixtures("_probe")
def test_a_term_that_is_added_has_its_panel() -> None:
    config = composed(
        "modules=[a_module_of_mine]",
        "+term@stages.synthesis.terms.probe=probe",
        "+term@stages.distillation.terms.probe=probe",
    )
    found = sections([config])
    assert lines(found["Synthesis"])["synthesis/probe"]["metrics"] == ["synthesis/probe"]
    assert lines(found["Distillation"])["distillation/probe"]["metrics"] == [
        "distillation/probe",
        "distillation/probe_promoted",
    ]
    by_summand = lines(found["Layers"])["Distillation, terms by summand"]["metricRegex"]
    assert re.fullmatch(by_summand, "distillation/probe_promoted/one_of_many")


def test_a_term_that_is_off_has_no_panel() -> None:
    found = sections([composed("stages.distillation.terms.alignment.enabled=false")])
    assert "distillation/alignment" not in lines(found["Distillation"])


def test_a_stage_without_terms_shows_whatever_it_logs() -> None:
    (panel,) = lines(sections([method("method=reconstruct")])["Reconstruction"]).values()
    assert re.fullmatch(panel["metricRegex"], "reconstruction/loss")
    assert panel["xAxis"] == "reconstruction/step"


@pytest.mark.slow
def test_the_command_asks_every_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def save(config: LoggerConfig, methods: Callable[[], Mapping[str, Config]]) -> str:
        asked.extend(methods())
        return "there"

    monkeypatch.setattr(dashboard, "save_dashboard", save)
    monkeypatch.setattr(main, "to_object", lambda composed: composed)
    finished = call("command=dashboard", folder=tmp_path)
    assert (finished.status, finished.out) == (0, "The dashboard is at there\n")
    assert asked == options("method")


def test_the_switches_of_the_ablation_are_columns_of_every_run() -> None:
    config = composed("method=hast")
    told = {place.replace(".", "/") for place in switches(config)}
    assert len(ablated_switches()) == 3
    assert set(ablated_switches()) <= told


def test_every_curve_is_drawn_over_the_steps_of_its_group() -> None:
    found = sections(methods())
    axes = {
        title: config["xAxis"]
        for name in ("Synthesis", "Distillation", "Evaluation", "Layers")
        for title, config in lines(found[name]).items()
    }
    assert axes["synthesis/bns"] == "synthesis/step"
    assert axes["evaluation/student_top1"] == "student/step"
    assert axes["Distillation, terms by summand"] == "distillation/step"
    assert axes["Weight error by layer"] == "student/step"


def test_a_term_on_promoted_images_is_drawn_beside_the_term() -> None:
    drawn = lines(sections(methods())["Distillation"])
    assert drawn["distillation/kd"]["metrics"] == ["distillation/kd", "distillation/kd_promoted"]
    assert drawn["distillation/learning_rate"]["metrics"] == ["distillation/learning_rate"]


@pytest.mark.usefixtures("_no_key")
def test_without_a_key_it_says_so_in_one_line(tmp_path: Path) -> None:
    finished = call("command=dashboard", "logger=wandb", folder=tmp_path)
    assert finished.refusal().startswith("command=dashboard saves to wandb and finds no key")
    assert os.listdir(tmp_path) == []


def test_what_goes_wrong_at_wandb_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb_workspaces.workspaces import Workspace

    def refuse(workspace: Workspace) -> None:
        raise ValueError("permission denied\nand a long explanation")

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(Workspace, "save", refuse)
    with pytest.raises(ConfigurationError, match=r"saved to wandb: permission denied$"):
        save_dashboard(LoggerConfig(entity="me"), lambda: {"hast": method("method=hast")})
