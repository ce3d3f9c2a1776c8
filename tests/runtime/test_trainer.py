"""The precision that a device is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hast_lightning.config import TrainerConfig
from hast_lightning.records.folder import CONFIG_FILE
from hast_lightning.runs import pipeline
from hast_lightning.runtime.trainer import fastest_precision
from tests.small_runs import small


@pytest.mark.parametrize(
    ("units", "expected"),
    [("amx_bf16", "bf16-mixed"), ("avx512_bf16", "bf16-mixed"), ("avx512_vnni", "32-true")],
)
def test_a_cpu_takes_bfloat16_where_it_has_units_for_it(
    units: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"amx_bf16": False, "avx512_bf16": False, units: True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert fastest_precision(TrainerConfig(accelerator="cpu")) == expected


@pytest.mark.parametrize(("units", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_gpu_likewise(units: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: units)
    assert fastest_precision(TrainerConfig(accelerator="gpu")) == expected


def test_an_older_torch_says_nothing_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert fastest_precision(TrainerConfig(accelerator="cpu")) == "32-true"


def test_a_run_says_what_it_chose_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    words = ("order=[calibration]", "evaluate=false", "export.formats=[]", "trainer.precision=auto")
    pipeline.run(small(*words), tmp_path / "run", "command")
    assert "trainer.precision=auto: bf16-mixed" in capsys.readouterr().out
    assert "precision: bf16-mixed" in (tmp_path / "run" / CONFIG_FILE).read_text()
