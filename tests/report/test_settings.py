"""What is said of a run in words."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import ANY

import pytest

from hast_lightning.records.result import Result
from hast_lightning.report.settings import duration, exports, key_figures, widths
from tests.records.test_results_table import make_result


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


KEPT = {
    "kept_stage": "calibration",
    "kept_top1": 61.25,
    "kept_agreement": 62.0,
    "kept_perplexity": 20.5,
    "quantized_perplexity": 99.5,
    "output_error": 0.9,
    "output_errors": {"boxes": 0.9},
    "judged": {"calibration": {"evaluation": {"error": 0.25}}, "distillation": {}},
}


def test_the_first_numbers_are_of_the_student_that_is_handed_back() -> None:
    made = replace(make_result((98.5, 61.25, 11.0)), **KEPT)  # type: ignore[arg-type]
    figures = {fact.name: fact.text for fact in key_figures(made)}
    ending = "handed back, after calibration"
    assert figures == {
        f"top-1 at W3A4, {ending}": "61.25 %",
        f"perplexity at W3A4, {ending}": "20.500",
        f"agreement with full precision, {ending}": "62.00 %",
        f"error of the outputs, of their spread, {ending}": "0.25",
        "error of the output boxes, last step": "0.9",
        "smaller than in float32": "10.0×",
        "for synthesis, training and evaluation": ANY,
    }
    last = {fact.name: fact.text for fact in key_figures(replace(made, kept_stage="distillation"))}
    assert last["top-1 at W3A4"] == "11.00 %"
    assert last["error of the output boxes"] == "0.9"
