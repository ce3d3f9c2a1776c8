"""Importing the package is quick: torch comes with the first use of the interface."""

from __future__ import annotations

import subprocess
import sys

import pytest

import hast_lightning


def run(code: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return finished.stdout.strip()


def test_the_import_alone_loads_nothing_heavy() -> None:
    heavy = run(
        "import sys; before = set(sys.modules); import hast_lightning;"
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before}"
        " - set(sys.stdlib_module_names)))"
    )
    assert heavy == "['hast_lightning']"


def test_the_import_takes_less_than_a_second() -> None:
    code = "import time; t = time.process_time(); import hast_lightning;"
    assert float(run(code + "print(time.process_time() - t)")) < 1


def test_what_predicts_needs_no_lightning() -> None:
    """They take five seconds to import, and a program that only predicts starts without them."""
    loaded = run(
        "import sys; from hast_lightning import Prediction, QuantizedModel; "
        "print({'lightning', 'torchmetrics', 'torchvision', 'torch._dynamo'} & set(sys.modules))"
    )
    assert loaded == "set()"


def test_the_interface_is_listed_and_nothing_else_is_there() -> None:
    assert {"QuantizedModel", "quantize", "__version__"} <= set(dir(hast_lightning))
    with pytest.raises(AttributeError, match="has no attribute 'quantise'"):
        _ = hast_lightning.quantise  # type: ignore[attr-defined]
