from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from hast_lightning.errors import DataError
from hast_lightning.records.result import Result

DOCUMENT = Path(__file__).parents[2] / "docs" / "result.md"


def make_result() -> Result:
    return Result(
        recipe="digits_w3a3",
        seed=3,
        model="digits_resnet",
        model_checksum="0" * 64,
        weight_bits=3,
        activation_bits=4,
        teacher_top1=98.5,
        calibrated_top1=61.25,
        quantized_top1=96.75,
        teacher_agreement=97.0,
        agreement_on="evaluation images",
        calibrated_agreement=62.0,
        evaluated_images=599,
        steps_by_stage={"synthesis": 100, "calibration": 20, "distillation": 50},
        student_steps=50,
        seconds_by_stage={"synthesis": 1.5, "distillation": 2.5},
        peak_memory_bytes=1_000_000,
        disk_bytes=1,
        device="a device",
        versions={"python": "3.11.0"},
        teacher_bytes=4_000_000,
        quantized_bytes=400_000,
        best_on_test_top1=None,
        status="complete",
        resumes=0,
        git_commit=None,
        command="hast-lightning seed=3",
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    make_result().write(path)
    assert Result.read(path) == make_result()


def test_file_is_plain_json_in_the_order_of_the_fields(tmp_path: Path) -> None:
    make_result().write(tmp_path / "result.json")
    content = json.loads((tmp_path / "result.json").read_text())
    assert list(content) == [field.name for field in fields(Result)]
    assert content == asdict(make_result())


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"quantized_top1": float("nan")}, "quantized_top1"),
        ({"seconds_by_stage": {"synthesis": float("inf")}}, "seconds_by_stage.synthesis"),
    ],
)
def test_nan_and_infinity_are_refused_and_the_old_file_stays(
    tmp_path: Path, change: dict[str, object], name: str
) -> None:
    path = tmp_path / "result.json"
    make_result().write(path)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        replace(make_result(), **change).write(path)
    assert Result.read(path) == make_result()


def test_a_crash_while_writing_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    make_result().write(path)

    def crash(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        replace(make_result(), seed=4).write(path)
    assert Result.read(path) == make_result()
    assert [child.name for child in tmp_path.iterdir()] == ["result.json"]


def test_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the result .*none\.json"):
        Result.read(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('{"seed": NaN}', "NaN is not a number"),
        ("[1, 2]", "holds no fields"),
        ('{"recipe": "x"}', "lacks: activation_bits"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        Result.read(path)


def test_unknown_fields_are_named(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({**asdict(make_result()), "surplus": 1}))
    with pytest.raises(DataError, match="unknown fields: surplus"):
        Result.read(path)


OLD = {"synthesis_steps": 100, "calibration_steps": 20, "student_steps": 50}


@pytest.mark.parametrize(
    ("seconds", "steps", "stages"),
    [
        (
            {"synthesis": 1.0, "calibration": 2.0, "distillation": 3.0, "evaluation": 4.0},
            {"synthesis": 100, "calibration": 20, "distillation": 50},
            ["synthesis", "calibration", "distillation", "evaluation"],
        ),
        (
            {"warmup": 1.0, "alternating": 2.0, "evaluation": 4.0},
            {"calibration": 20, "alternation": 50},
            ["calibration", "alternation", "evaluation"],
        ),
    ],
    ids=["one_after_the_other", "in_turns"],
)
def test_a_result_of_before_there_were_methods_has_the_stages_of_today(
    tmp_path: Path, seconds: dict[str, float], steps: dict[str, int], stages: list[str]
) -> None:
    today = asdict(make_result())
    gone = ("method", "budget", "steps_by_stage", "student_steps")
    old = {name: value for name, value in today.items() if name not in gone}
    text = json.dumps({**old, **OLD, "seconds_by_stage": seconds})
    (tmp_path / "result.json").write_text(text)
    result = Result.read(tmp_path / "result.json")
    assert (result.method, result.budget) == ("", "")
    assert (result.steps_by_stage, result.student_steps) == (steps, 50)
    assert list(result.seconds_by_stage) == stages
    assert list(result.seconds_by_stage.values()) == list(seconds.values())
    # Only read: the file is as it was.
    assert (tmp_path / "result.json").read_text() == text


def test_steps_that_were_not_done_are_no_stage(tmp_path: Path) -> None:
    old = {k: v for k, v in asdict(make_result()).items() if k != "steps_by_stage"}
    content = {**old, **OLD, "synthesis_steps": 0}
    (tmp_path / "result.json").write_text(json.dumps(content))
    result = Result.read(tmp_path / "result.json")
    assert result.steps_by_stage == {"calibration": 20, "distillation": 50}


def test_every_field_is_documented_and_every_documented_field_exists() -> None:
    documented = re.findall(r"^\| `(\w+)` \|", DOCUMENT.read_text(), flags=re.MULTILINE)
    # The page has its own order: what a reader looks for first.
    assert sorted(documented) == sorted(field.name for field in fields(Result))
