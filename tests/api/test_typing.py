"""A project that uses the package is type-checked against it, as strictly as mypy can."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import hast_lightning

PACKAGE = Path(hast_lightning.__file__).parent
USES = """\
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hast_lightning import Prediction, QuantizedModel, quantize
from hast_lightning.records.result import Result


def smaller(network: nn.Module, folder: Path) -> float | None:
    quantized: QuantizedModel = quantize(
        network,
        bits=(3, 4),
        method="hast",
        schedule="demo",
        recipe={"schedule": {"student_steps": 10}},
        overrides=["trainer.threads=1"],
        input_shape=(1, 8, 8),
        mean=[0.5],
        std=[0.5],
        data=(torch.zeros(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64)),
        seed=0,
    )
    quantized.save(folder / "student.safetensors")
    loaded: QuantizedModel = QuantizedModel.load(folder / "student.safetensors")
    labels: torch.Tensor = loaded.predict(torch.zeros(2, 1, 8, 8)).labels
    print(labels.tolist())
    prediction: Prediction = loaded.predict([folder / "one.png"])
    logits, best = prediction
    names: list[str] | None = prediction.class_names
    print(logits, best, prediction.probabilities.max(), names)
    quantize(
        network,
        bits={"stem*": 8, "*": "w4a8"},
        overrides={"schedule": {"student_steps": 10}},
        mean=np.zeros(1),
        std=torch.ones(1),
        data=folder,
    )
    result: Result = quantized.result
    return result.quantized_top1
"""
MISUSES = """\
from hast_lightning import quantize

quantize("digits", bits=3.5)
quantize("digits", bit=3)
text: str = quantize("digits")
"""


def checked(source: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What ``mypy --strict`` says of a file in a folder of its own, without our settings."""
    (folder / "downstream.py").write_text(source, encoding="utf-8")
    return subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-color-output"),
            *(f"--cache-dir={folder / 'cache'}", "downstream.py"),
        ],
        cwd=folder,
        # As an installed package, which mypy reads only for its py.typed; MYPYPATH needs none.
        env={"PATH": "", "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_package_says_that_it_has_types() -> None:
    assert (PACKAGE / "py.typed").is_file()


# Reading torch for the first time takes mypy most of a minute.
@pytest.mark.slow
@pytest.mark.timeout(700)
def test_right_use_passes_and_wrong_use_is_found(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    right = checked(USES, tmp_path)
    assert right.returncode == 0, right.stdout + right.stderr
    assert "Success: no issues found in 1 source file" in right.stdout

    wrong = checked(MISUSES, tmp_path)
    assert wrong.returncode == 1, wrong.stdout + wrong.stderr
    lines = [line for line in wrong.stdout.splitlines() if "error:" in line]
    assert [line.split(":")[:2] for line in lines] == [
        ["downstream.py", "3"],
        ["downstream.py", "4"],
        ["downstream.py", "5"],
    ]
