"""What is said of a network that was handed in with nothing learned in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import TINY, call

MODULE = """
from hast_lightning.models.resnet import CifarResNet
def new():
    return CifarResNet(8, 10, width=4)
"""
NEW = ("model=own", "model.factory=new_nets:new", "model.name=new", "model.input_size=16")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "new_nets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_inspect_says_that_the_batch_norms_never_met_an_image(folder: Path) -> None:
    printed = call("command=inspect", *NEW, folder=folder).out
    assert "BatchNorms: mean 0 and variance 1 everywhere, as in a network" in printed
    assert "weights: as model.factory returns them, SHA-256" in printed
    assert "never trained" not in call("command=inspect", "model=digits", folder=folder).out


def test_a_run_warns_of_it_and_goes_on(folder: Path) -> None:
    finished = call(*NEW, *TINY, "data=none", folder=folder)
    assert finished.status == 0
    assert "the BatchNorms of new have the statistics of a new network" in finished.out
