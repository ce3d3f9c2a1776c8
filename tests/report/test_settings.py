"""What is said of a run in words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from hast_lightning.records.result import Result
from hast_lightning.report.settings import duration, exports, widths


def with_exports(found: Any) -> Result:
    return cast(Result, SimpleNamespace(exports=found))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "0.2 s"),
        (42.4, "42 s"),
        (59.7, "1 min 0 s"),
        (185, "3 min 5 s"),
        (7830, "2 h 10 min"),
    ],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_exports_are_rows_with_units() -> None:
    record = {"file": "student.onnx", "bytes": 33107, "agreement": 99.8332, "milliseconds": None}
    (row,) = exports(with_exports({"onnx": record}))
    assert row == {
        "format": "onnx",
        "file": "student.onnx",
        "size": "33.1 KB",
        "agreement with the student, %": "99.83",
        "ms an image": "–",
    }


def test_without_exports_there_are_no_rows() -> None:
    assert exports(with_exports({})) == exports(None) == ()


@pytest.mark.parametrize(
    ("bits", "text"),
    [((3, 3), "3 bits"), ((8, 2, 2, 2, 4, 8), "2 bits (4 bits in 1 of them, 8 bits in 2 of them)")],
)
def test_other_bits_of_single_layers_are_not_kept_quiet(bits: tuple[int, ...], text: str) -> None:
    assert widths(bits) == text
