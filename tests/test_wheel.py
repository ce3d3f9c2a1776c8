"""The wheel: its contents, and that it runs where there is no checkout."""

from __future__ import annotations

import email.parser
import json
import os
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import hast_lightning

CHECKOUT = Path(__file__).parents[1]
MODULE = ["-m", "hast_lightning"]
SHORT_RUN = [
    "trainer.accelerator=cpu",
    "trainer.threads=1",
    "callbacks.progress=false",
    "callbacks.grid_images=4",
    "schedule.calibration_steps=2",
    "schedule.student_steps=2",
    "schedule.image_steps=2",
    "schedule.images=32",
    "schedule.image_batch=32",
    "schedule.student_batch=8",
    "hydra.run.dir=run",
]


def run_python(arguments: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without isolation, which needs no network."""
    folder = tmp_path_factory.mktemp("wheel")
    run_python(["-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(CHECKOUT)])
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel in a folder of its own, console script included."""
    folder = tmp_path_factory.mktemp("installed")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", "--no-compile"]
    run_python(["-m", "pip", "install", *options, "--target", str(folder), str(wheel)])
    return folder


def run_isolated(
    arguments: list[str], folder: Path, *path: Path
) -> subprocess.CompletedProcess[str]:
    """Run Python in ``folder`` with ``path`` and the dependencies, but without the checkout.

    -S keeps Python from reading .pth files, among them the one of an editable
    install; the dependencies come back by PYTHONPATH, which reads none either.
    """
    entries = [str(entry) for entry in path] + site.getsitepackages()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entries), "OMP_NUM_THREADS": "1"}
    environment.pop("HYDRA_FULL_ERROR", None)
    return run_python(["-S", *arguments], cwd=folder, env=environment)


def members(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def metadata(wheel: Path, name: str) -> str:
    (member,) = (m for m in members(wheel) if m.endswith(f".dist-info/{name}"))
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(member).decode()


def files_below(folder: Path, prefix: str) -> set[str]:
    return {
        f"{prefix}/{path.relative_to(folder).as_posix()}"
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_the_package_and_conf_and_nothing_else(wheel: Path) -> None:
    package = files_below(CHECKOUT / "src" / "hast_lightning", "hast_lightning")
    conf = files_below(CHECKOUT / "conf", "hast_lightning/conf")
    assert {m for m in members(wheel) if ".dist-info/" not in m} == package | conf


@pytest.mark.parametrize(
    "member",
    [
        "hast_lightning/conf/config.yaml",
        "hast_lightning/conf/experiment/digits.yaml",
        "hast_lightning/models/weights/digits_resnet.safetensors",
        "hast_lightning/py.typed",
    ],
)
def test_the_wheel_holds_what_is_not_python(wheel: Path, member: str) -> None:
    assert member in members(wheel)


def test_the_metadata_names_version_licence_and_entry_point(wheel: Path) -> None:
    fields = email.parser.Parser().parsestr(metadata(wheel, "METADATA"))
    assert fields["Version"] == hast_lightning.__version__
    assert fields["License-Expression"] == "Apache-2.0"
    assert fields["Requires-Python"] == ">=3.11"
    assert str(fields["Summary"]).startswith("Zero-shot quantization")
    assert "data-free" in fields["Keywords"]
    assert "Typing :: Typed" in fields.get_all("Classifier", [])
    assert fields["Description-Content-Type"] == "text/markdown"
    assert str(fields.get_payload()).startswith("# hast-lightning")
    assert "hast-lightning = hast_lightning.cli.start:main" in metadata(wheel, "entry_points.txt")
    assert "Apache License" in metadata(wheel, "licenses/LICENSE")


def test_the_checkout_is_out_of_reach(tmp_path: Path) -> None:
    """What makes the tests below tests of the wheel."""
    code = "import importlib.util; print(importlib.util.find_spec('hast_lightning'))"
    assert run_isolated(["-c", code], tmp_path).stdout.strip() == "None"


# That a run finds its configuration below is the same question, asked in fewer words.
@pytest.mark.slow
@pytest.mark.parametrize("entry", ["module", "console script"])
def test_help_lists_the_groups(installed: Path, tmp_path: Path, entry: str) -> None:
    start = MODULE if entry == "module" else [str(installed / "bin" / "hast-lightning")]
    shown = run_isolated([*start, "--help", "groups"], tmp_path, installed).stdout
    assert "schedule: demo, " in shown
    assert "hast_adam" in shown
    assert list(tmp_path.iterdir()) == []


# Most of the time goes into loading torch in a fresh process, long on a busy machine.
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "entry", [pytest.param("module", marks=pytest.mark.slow), "console script"]
)
def test_the_default_recipe_runs(installed: Path, tmp_path: Path, entry: str) -> None:
    start = MODULE if entry == "module" else [str(installed / "bin" / "hast-lightning")]
    finished = run_isolated([*start, *SHORT_RUN], tmp_path, installed)
    assert finished.stderr == ""
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["recipe"] == "hast_digits_resnet_w3a3"
    assert result["student_steps"] == 2
    assert result["evaluated_images"] == 599
    assert result["git_commit"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
