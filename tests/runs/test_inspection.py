"""What ``command=inspect`` says of networks and methods, before anything is run."""

from __future__ import annotations

import io
from pathlib import Path
from unittest.mock import Mock

import pytest
from rich.console import Console

from hast_lightning.runs import inspection
from hast_lightning.runs.inspection import inspect
from tests.command_line import TINY, call
from tests.small_runs import small

MODULE = """
from torch import nn
from hast_lightning.models.resnet import CifarResNet
def new():
    return CifarResNet(8, 10, width=4)
def plain():
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    return nn.Sequential(*layers)
"""
NEW = ("model=own", "model.factory=new_nets:new", "model.name=new", "model.input_size=16")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "new_nets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def inspected(*overrides: str) -> str:
    console = Console(file=io.StringIO(), width=100)
    inspect(small(*overrides), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def rows(text: str) -> list[list[str]]:
    """Cells of the table of the method, without those that are empty."""
    lines = text.partition(", budget ")[2].splitlines()
    return [line.replace("  ", "|").split("|") for line in lines]


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in row if cell.strip()] for row in rows(text)]


def test_it_shows_the_stages_with_their_steps_and_what_their_parts_need() -> None:
    found = cells(inspected())
    assert ["synthesis", "6", "bank", "bns", "1", "BatchNorms, 7 teacher values"] in found
    assert ["hard_cross_entropy", "10", "hard labels"] in found
    assert [
        "calibration",
        "2",
        "calibration",
        "bns",
        "0.1",
        "BatchNorms, 7 teacher values",
    ] in found
    assert ["distillation", "3", "bank", "kd", "1", "the student"] in found
    assert ["alignment", "50", "3 teacher values, 3 student values"] in found
    assert ["promotion"] in found
    # What is switched off is not there.
    assert ["crop_and_flip"] not in found


def test_stages_that_take_turns_are_shown_inside_of_theirs() -> None:
    text = inspected("method=gdfq")
    found = cells(text)
    assert ["alternation", "3"] in found
    assert ["distillation", "generator", "kd", "1", "the student"] in found
    assert "\n   distillation" in text
    assert "method: gdfq (Generative low-bitwidth data free quantization, Xu et al.," in text


def test_what_is_loaded_takes_no_steps(tmp_path: Path) -> None:
    assert (
        call(
            *TINY,
            "order=[synthesis]",
            "evaluate=false",
            "report=false",
            "export=none",
            "hydra.run.dir=bank",
            folder=tmp_path,
        ).status
        == 0
    )
    found = cells(inspected(f"sources.bank.load={tmp_path / 'bank' / 'samples.safetensors'}"))
    assert [row[:3] for row in found if row[:1] == ["synthesis"]] == [["synthesis", "0", "bank"]]


def test_a_method_that_does_not_fit_is_told_and_the_network_is_shown_all_the_same(
    folder: Path,
) -> None:
    plain = ("model=own", "model.factory=new_nets:plain", "model.name=plain", "model.input_size=8")
    finished = call("command=inspect", *plain, "model.mean=[0.5]", "model.std=[0.5]", folder=folder)
    assert (finished.status, finished.err) == (0, "")
    assert "quantized layers: 2" in finished.out
    row = next(row for row in cells(finished.out) if "bns" in row)
    assert row[-3::2] == ["bns", "does not fit"]
    last = finished.out.splitlines()[-1]
    assert last.startswith("a run would be refused: the network plain has no BatchNorm")


def test_inspect_says_that_the_batch_norms_never_met_an_image(folder: Path) -> None:
    printed = call("command=inspect", *NEW, folder=folder).out
    assert "BatchNorms: mean 0 and variance 1 everywhere, as in a network" in printed
    assert "weights: as model.factory returns them, SHA-256" in printed
    assert "never trained" not in inspected()


def test_a_run_warns_of_it_and_goes_on(folder: Path) -> None:
    finished = call(*NEW, *TINY, "data=none", folder=folder)
    assert finished.status == 0
    assert "the BatchNorms of new have the statistics of a new network" in finished.out


def test_names_are_no_markup(folder: Path) -> None:
    """A console reads brackets and colons where nobody tells it not to."""
    config = small(*NEW)
    config.model.name = "net[/a]:x:"
    console = Console(file=io.StringIO(), width=100)
    inspect(config, console)
    assert isinstance(console.file, io.StringIO)
    assert "net[/a]:x:, W3A3" in console.file.getvalue()


def test_the_console_of_the_command_reads_no_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Mock(show=lambda console: console.print("net[/a]:x:"))
    monkeypatch.setattr(inspection, "examine", lambda *_: shown)
    inspect(small())
    assert capsys.readouterr().out == "net[/a]:x:\n"
