from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from hast_lightning import pipeline
from hast_lightning.config import LoggerConfig
from hast_lightning.errors import ConfigurationError
from hast_lightning.reporting.dashboard import (
    IMAGE_LOSSES,
    LAYER_TABLE,
    STUDENT_LOSSES,
    build_dashboard,
    save_dashboard,
)
from tests import wandb_files
from tests.command_line import call, undisturbed_torch
from tests.small_runs import small

LOGGED = ("logger.name=wandb", "callbacks.media_every_n_steps=3")

pytest.importorskip("wandb_workspaces", reason="the extra dashboard is not installed")


@pytest.fixture
def _no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


def panels() -> dict[str, list[dict[str, Any]]]:
    """What would be sent to wandb: panels by the name of their section."""
    view = build_dashboard("me", "project")._to_model().model_dump(by_alias=True, exclude_none=True)
    assert (view["entity"], view["project"]) == ("me", "project")
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


def test_there_is_a_section_for_every_question() -> None:
    assert list(panels()) == [
        "Results",
        "Evaluation",
        "Synthesis and calibration",
        "Distillation",
        "Synthetic images",
        "Difficulty and confidence",
        "Layers",
    ]


def test_every_curve_is_drawn_over_the_steps_of_its_stage() -> None:
    found = panels()
    axes = {
        panel["config"]["chartTitle"]: panel["config"]["xAxis"]
        for name in ("Synthesis and calibration", "Distillation", "Evaluation", "Layers")
        for panel in found[name]
        if panel["viewType"] == "Run History Line Plot"
    }
    # Of two stages, which count their own steps.
    assert axes["Batch-norm statistics"] == "iteration"
    assert axes["Top-1 and agreement, %"] == "distillation/step"
    assert axes["Alignment loss by block"] == "distillation/step"
    assert set(axes.values()) == {"iteration", "distillation/step"}


def named(panel: dict[str, Any]) -> list[str]:
    """The metrics of a panel, as patterns; none of a panel that compares whole configurations."""
    config = panel["config"]
    if panel["viewType"] == "Weave":
        assert json.dumps(LAYER_TABLE) in json.dumps(config)
        return [LAYER_TABLE]
    if config.get("metricRegex"):
        return [str(config["metricRegex"])]
    return [re.escape(name) for name in [*config.get("metrics", []), *config.get("mediaKeys", [])]]


def every_panel() -> list[list[str]]:
    patterns = [named(panel) for section in panels().values() for panel in section]
    return [metrics for metrics in patterns if metrics]


def is_logged(pattern: str, names: set[str]) -> bool:
    return any(re.fullmatch(pattern, name) for name in names)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> list[set[str]]:
    """What runs log to wandb: of the default recipe, of one with GDFQ's terms, and of both."""
    recipes = (
        [],
        [
            "synthesis.calibration.source=synthesis",
            "distillation.promotion.enabled=false",
            "distillation.alignment.enabled=false",
            "distillation.cross_entropy_weight=1",
        ],
        ["distillation.cross_entropy_weight=1"],
    )
    found = []
    with wandb_files.offline(tmp_path_factory.mktemp("wandb")), undisturbed_torch():
        for recipe in recipes:
            folder = tmp_path_factory.mktemp("run")
            pipeline.run(small("run=[synthesize,distill,evaluate]", *LOGGED, *recipe), folder, "x")
            run = wandb_files.read_wandb_run(folder)
            # Pictures, histograms and tables are entries of several fields.
            found.append({name.removesuffix("/_type") for row in run.history for name in row})
    return found


def test_every_metric_of_the_dashboard_is_logged_by_some_recipe(logged: list[set[str]]) -> None:
    names = set.union(*logged)
    missing = [name for panel in every_panel() for name in panel if not is_logged(name, names)]
    assert missing == []
    assert not is_logged("distillation/no_such_term", names)


def test_no_panel_is_empty_for_the_default_recipe(logged: list[set[str]]) -> None:
    for panel in every_panel():
        assert any(is_logged(name, logged[0]) for name in panel), panel


def test_no_panel_of_losses_is_empty_for_a_recipe_of_other_terms(logged: list[set[str]]) -> None:
    """GDFQ's, which has no alignment, no promotion and no generator of its own to calibrate."""
    assert "distillation/alignment" not in logged[1]
    for panels_of_section in (IMAGE_LOSSES, STUDENT_LOSSES):
        for metrics in panels_of_section.values():
            assert logged[1] & set(metrics), metrics


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
        save_dashboard(LoggerConfig(entity="me"))
