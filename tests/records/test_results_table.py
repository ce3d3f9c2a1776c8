from __future__ import annotations

import io
from dataclasses import replace
from unittest.mock import ANY

import pytest
from rich.console import Console

from hast_lightning.records.result import Result
from hast_lightning.records.results_table import headline, readable_size, results_table


def make_result(top1: tuple[float | None, float | None, float | None]) -> Result:
    return Result(
        recipe="digits_w3a4",
        seed=3,
        model="digits_resnet",
        model_checksum="0" * 64,
        weight_bits=3,
        activation_bits=4,
        teacher_top1=top1[0],
        calibrated_top1=top1[1],
        quantized_top1=top1[2],
        teacher_agreement=97.125,
        agreement_on="held-out synthetic images",
        calibrated_agreement=62.0,
        evaluated_images=1024,
        steps_by_stage={"synthesis": 1, "distillation": 1},
        student_steps=1,
        seconds_by_stage={},
        peak_memory_bytes=None,
        disk_bytes=1,
        device="a device",
        versions={},
        teacher_bytes=4_000_000,
        quantized_bytes=400_000,
        best_on_test_top1=99.99,
        status="complete",
        resumes=0,
        git_commit=None,
        command="",
    )


def rows(result: Result) -> list[list[str]]:
    table = results_table(result)
    return [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]


def test_rows_with_labels() -> None:
    assert rows(make_result((98.5, 61.25, 96.754))) == [
        ["full precision", "98.50", "-", "32/32", "4.00 MB"],
        ["calibrated ranges only", "61.25", "62.00", "3/4", "400.0 KB (10.0x)"],
        ["calibrated and trained", "96.75", "97.12", "3/4", "400.0 KB (10.0x)"],
    ]


def test_without_ranges_nothing_is_called_calibrated() -> None:
    result = replace(make_result((98.5, 61.25, 96.754)), activation_bits=32)
    assert [row[0] for row in rows(result)] == ["full precision", "before training", "trained"]
    assert "W3, activations in float" in str(results_table(result).caption)


def test_a_new_network_is_compared_with_no_earlier_self() -> None:
    result = replace(make_result((98.5, None, 96.754)), weight_bits=32, activation_bits=32)
    assert rows(result)[1:] == [["trained from scratch", "96.75", "97.12", "32/32", ANY]]


def test_mixed_bits_are_said_below() -> None:
    result = replace(make_result((98.5, 61.25, 96.754)), mixed=True)
    assert str(results_table(result).caption).endswith("; W3A4, mixed")


def test_without_labels_agreement_stands_for_accuracy() -> None:
    result = make_result((None, None, None))
    headers = [column.header for column in results_table(result).columns]
    assert headers == ["network", "agreement %", "bits W/A", "size (smaller)"]
    assert [row[1] for row in rows(result)] == ["-", "62.00", "97.12"]


def test_no_row_claims_a_method_that_the_recipe_may_not_be() -> None:
    gdfq = replace(make_result((98.5, 61.25, 96.754)), recipe="cifar10_resnet20_w4a4_gdfq")
    names = ["full precision", "calibrated ranges only", "calibrated and trained"]
    assert [row[0] for row in rows(gdfq)] == names
    # The report's page shows the same.
    assert [row.name for row in headline(gdfq)] == names
    assert "gdfq" in str(results_table(gdfq).title)


def test_rendered_in_80_columns_nothing_is_cut_and_the_best_on_test_is_absent() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(results_table(make_result((98.5, 61.25, 96.754))))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for part in ("digits_w3a4, seed 3", "calibrated ranges only", "10.0x)", "96.75"):
        assert part in text
    assert "1,024 held-out synthetic images" in text
    assert "…" not in text
    assert "99.99" not in text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 KB"), (999_949, "999.9 KB"), (1_234_567, "1.23 MB")],
)
def test_sizes(size: int, text: str) -> None:
    assert readable_size(size) == text


@pytest.mark.parametrize("name", ["exp[/a]", "exp[red]", "exp:x:", "caf\udce9"])
def test_names_are_no_markup(name: str) -> None:
    result = replace(make_result((98.5, 61.25, 96.754)), recipe=name)
    stage = name.replace(":", "_")
    judged = {stage: {"evaluation": {"error": 0.25}}, "distillation": {}}
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), width=80)
    console.print(results_table(replace(result, judged=judged, kept_stage=stage)))
    console.file.seek(0)
    text = console.file.read()
    shown = name.replace("\udce9", "\\udce9")
    assert f"{shown}, seed 3" in text
    assert f"kept: {shown.replace(':', '_')}" in text


def test_the_caption_does_not_call_what_is_kept_the_last_step() -> None:
    result = replace(make_result((98.5, 61.25, 11.0)), judged={"calibration": {}, "training": {}})
    kept = replace(result, kept_stage="calibration")
    assert "after the last student step, and as handed back" in str(results_table(kept).caption)
    last = replace(result, kept_stage="training")
    assert str(results_table(last).caption).endswith("synthetic images, last student step")
