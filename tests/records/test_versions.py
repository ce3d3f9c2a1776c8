from __future__ import annotations

import platform
import re
import stat
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

import hast_lightning
from hast_lightning.records.versions import (
    _cpu_model,
    device_name,
    git_commit,
    peak_memory_bytes,
    resident_set_unit,
    versions,
)

STATUS = Path("/proc/self/status")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_versions_name_what_can_change_the_numbers() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["hast_lightning"] == hast_lightning.__version__
    assert found["torch"] == torch.__version__
    assert {"torchvision", "lightning", "hydra-core", "omegaconf", "numpy"} <= found.keys()
    # Plain strings (torch's own is a subclass), as the result file needs.
    assert {type(value) for value in found.values()} == {str}


def test_a_package_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(package: str) -> str:
        if package == "numpy":
            raise PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr("hast_lightning.records.versions.version", absent)
    assert "numpy" not in versions()
    assert versions()["torchmetrics"] == "1.0"


@pytest.mark.skipif(not STATUS.is_file(), reason="needs the process status of Linux")
def test_peak_memory_is_what_the_system_says_in_bytes() -> None:
    peak = peak_memory_bytes("cpu")
    assert peak is not None
    match = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text())
    assert match is not None
    assert peak == pytest.approx(int(match[1]) * 1024, rel=0.05)


def test_unit_of_the_resident_set() -> None:
    assert resident_set_unit("linux") == 1024
    assert resident_set_unit("darwin") == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_memory_and_name_on_cuda() -> None:
    block = torch.ones(10_000_000, device="cuda")
    peak = peak_memory_bytes("cuda")
    assert peak is not None
    assert peak >= block.numel() * 4
    assert device_name("cuda") == torch.cuda.get_device_name()


def test_name_of_the_cpu_tells_model_and_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Fast CPU 9000\n")
    assert _cpu_model(cpuinfo) == "Fast CPU 9000"
    monkeypatch.setattr("hast_lightning.records.versions._cpu_model", lambda: "Fast CPU 9000")
    assert device_name("cpu") == f"Fast CPU 9000 ({torch.get_num_threads()} threads)"


def test_name_of_a_cpu_that_the_system_does_not_tell(tmp_path: Path) -> None:
    assert _cpu_model(tmp_path / "missing") in (platform.processor(), platform.machine())


def fake_git(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a ``git`` that is a shell script first on the path."""
    program = folder / "git"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))


def test_commit_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_git(tmp_path, monkeypatch, f'[ "$4" = describe ] && echo {COMMIT}-dirty || echo tracked')
    assert git_commit() == f"{COMMIT}-dirty"


def test_no_commit_when_the_package_is_not_tracked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An installed copy inside somebody else's repository: describe alone would answer.
    fake_git(tmp_path, monkeypatch, f'[ "$4" = describe ] && echo {COMMIT} || exit 1')
    assert git_commit() is None


def test_no_commit_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() is None


def test_real_answer_is_a_full_commit_or_none() -> None:
    commit = git_commit()
    assert commit is None or re.fullmatch(r"[0-9a-f]{40,64}(-dirty)?", commit)
