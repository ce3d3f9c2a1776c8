"""The precision that a device is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hast_lightning.config import TrainerConfig
from hast_lightning.core.network import PICTURES, TOKENS
from hast_lightning.records.folder import CONFIG_FILE
from hast_lightning.runs import pipeline
from hast_lightning.runs.assembly import prepare_torch
from hast_lightning.runtime import trainer
from hast_lightning.runtime.trainer import fastest_precision
from tests.small_runs import small


@pytest.mark.parametrize(
    ("units", "maker", "expected"),
    [
        *(("amx_bf16", maker, "bf16-mixed") for maker in ("GenuineIntel", "AuthenticAMD")),
        ("avx512_bf16", "AuthenticAMD", "bf16-mixed"),
        # Slower than float32 there.
        ("avx512_bf16", "GenuineIntel", "32-true"),
        ("avx512_vnni", "AuthenticAMD", "32-true"),
    ],
)
@pytest.mark.parametrize("on_linux", [True, False])
def test_a_cpu_takes_bfloat16_where_it_multiplies_that_faster(
    units: str,
    maker: str,
    expected: str,
    on_linux: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    known = {"amx_bf16": False, "avx512_bf16": False, units: True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    information = tmp_path / "cpuinfo"
    if on_linux:
        information.write_text(f"processor\t: 0\nvendor_id\t: {maker}\nmodel\t\t: 207\n")
    monkeypatch.setattr(trainer, "CPU_INFORMATION", information)
    described = f"AMD64 Family 25 Model 17 Stepping 1, {maker}"
    monkeypatch.setattr("platform.processor", lambda: "" if on_linux else described)
    assert fastest_precision(TrainerConfig(accelerator="cpu")) == expected


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        *(("avx512_core", "32-true"), ("AVX2", "32-true"), ("DEFAULT", "bf16-mixed")),
        *(("AVX512_CORE_BF16", "bf16-mixed"), ("AVX512_CORE_AMX", "bf16-mixed")),
    ],
)
def test_units_that_onednn_may_not_use_do_not_count(
    limit: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert fastest_precision(TrainerConfig(accelerator="cpu")) == expected


@pytest.mark.parametrize(("modality", "expected"), [(PICTURES, "bf16-mixed"), (TOKENS, "32-true")])
def test_bfloat16_is_for_pictures_where_nothing_else_is_said(
    modality: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hast_lightning.runs.assembly.fastest_precision", lambda _: "bf16-mixed")
    config = small()
    config.model.modality = modality
    config.trainer.precision = "auto"
    prepare_torch(config)
    assert config.trainer.precision == expected


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
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    words = ("order=[calibration]", "evaluate=false", "export.formats=[]", "trainer.precision=auto")
    pipeline.run(small(*words), tmp_path / "run", "command")
    assert "trainer.precision=auto: bf16-mixed" in capsys.readouterr().out
    assert "precision: bf16-mixed" in (tmp_path / "run" / CONFIG_FILE).read_text()
