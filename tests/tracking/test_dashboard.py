from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hast_lightning.config import LoggerConfig
from hast_lightning.errors import ConfigurationError
from hast_lightning.tracking.dashboard import build_dashboard, save_dashboard
from tests.command_line import call

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
        "Synthesis",
        "Calibration",
        "Distillation",
        "Terms of other recipes",
        "Synthetic images",
        "Difficulty and confidence",
        "Layers",
    ]


def test_every_curve_is_drawn_over_the_steps_of_its_stage() -> None:
    found = panels()
    axes = {
        panel["config"]["chartTitle"]: panel["config"]["xAxis"]
        for name in ("Synthesis", "Distillation", "Evaluation", "Layers")
        for panel in found[name]
        if panel["viewType"] == "Run History Line Plot"
    }
    assert axes["synthesis/bns"] == "synthesis/step"
    assert axes["evaluation/student_top1"] == "distillation/step"
    assert axes["Alignment loss by block"] == "distillation/step"
    assert set(axes.values()) == {"synthesis/step", "distillation/step"}


def test_a_term_on_promoted_images_is_drawn_beside_the_term() -> None:
    metrics = {
        panel["config"]["chartTitle"]: panel["config"]["metrics"]
        for panel in panels()["Distillation"]
    }
    assert metrics["distillation/kd"] == ["distillation/kd", "distillation/kd_promoted"]
    assert metrics["distillation/learning_rate"] == ["distillation/learning_rate"]


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
