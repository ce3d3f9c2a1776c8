"""The table of what the safeguard has judged."""

from __future__ import annotations

from dataclasses import replace

from hast_lightning.report.judged import judged_table
from hast_lightning.report.page import render
from tests.records.test_results_table import make_result
from tests.report.pages import Page, report

JUDGED = {
    "calibration": {
        "noise": {"error": 0.5, "agreement": 40.0},
        "reference": {"error": 0.0729, "agreement": 98.4375},
        "evaluation": {"agreement": 97.5, "top1": 96.754},
    },
    "distillation": {
        "noise": {"error": 0.25, "agreement": 50.0},
        "reference": {"error": 1.2e9, "agreement": 10.0},
        "evaluation": {"agreement": 12.5, "top1": 11.0},
    },
}


def test_each_stage_has_a_row_and_what_decides_comes_first() -> None:
    made = replace(make_result((98.5, 61.25, 11.0)), judged=JUDGED, kept_stage="calibration")
    table = judged_table(made)
    assert table is not None
    assert table.images == ("reference images", "smooth noise", "evaluation")
    breaks = str.maketrans("\N{NO-BREAK SPACE}\N{NON-BREAKING HYPHEN}", " -")
    plain = [tuple(cell.translate(breaks) for cell in row.cells) for row in table.stages]
    stages = [(row.stage, row.kept) for row in table.stages]
    assert [(*stage, cells) for stage, cells in zip(stages, plain, strict=True)] == [
        ("calibration", True, ("0.0729, 98.4 %", "0.5, 40.0 %", "97.5 %, top-1 96.75 %")),
        ("distillation", False, ("1.2e+09, 10.0 %", "0.25, 50.0 %", "12.5 %, top-1 11.00 %")),
    ]


def test_what_is_handed_back_is_said_in_words() -> None:
    made = replace(make_result((98.5, 61.25, 11.0)), judged=JUDGED, kept_stage="calibration")
    text = Page(render(replace(report(), judged=judged_table(made)))).texts()
    assert "calibration handed back 0.0729, 98.4 %" in text
    assert "distillation 1.2e+09, 10.0 %" in text
    assert text.count("handed back") == 2  # once in the caption


def test_without_a_choice_there_is_no_table() -> None:
    assert judged_table(None) is None
    assert judged_table(make_result((98.5, 61.25, 11.0))) is None
    assert "After each stage" not in render(replace(report(), judged=None))


def test_a_page_without_activation_ranges_has_no_table_of_them() -> None:
    (weights, _) = report().layers
    assert " activations" not in Page(render(replace(report(), layers=(weights,)))).texts()


def test_where_two_kinds_decide_their_mean_comes_first() -> None:
    errors = {"calibration": (0.1, 0.8), "distillation": (0.3, 2.4)}
    judged = {
        stage: {
            "leaves": {"error": leaves, "agreement": 50.0},
            "reference": {"error": reference, "agreement": 60.0},
        }
        for stage, (reference, leaves) in errors.items()
    }
    made = replace(make_result((98.5, 61.25, 11.0)), judged=judged, kept_stage="calibration")
    table = judged_table(made)
    assert table is not None
    assert table.images == ("reference images and leaves", "reference images", "leaves")
    assert [row.cells[0] for row in table.stages] == ["0.4", "1.2"]
    text = Page(render(replace(report(), judged=table))).texts()
    assert (
        "the geometric mean of the errors on reference images and leaves, where leaves count "
        "twice, decided"
    ) in text
