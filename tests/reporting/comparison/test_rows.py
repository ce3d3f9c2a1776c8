from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path

import pytest

from hast_lightning.errors import DataError
from hast_lightning.reporting.comparison.rows import Row, Spread, best, published, spread, summarize
from hast_lightning.reporting.comparison.runs import FinishedRun, collect
from hast_lightning.reporting.comparison.tables import as_csv, as_html, as_latex, as_markdown
from hast_lightning.reporting.result import Result
from tests.docs.snippets import ROOT
from tests.reporting.test_table import make_result


def result(recipe: str, seed: int, top1: float | None, **changes: object) -> Result:
    made = make_result((98.5, 61.25, top1))
    return dataclasses.replace(made, recipe=recipe, seed=seed, **changes)  # type: ignore[arg-type]


RESULTS = [
    result("plain_w3a4", 0, 90.0, seconds_by_stage={"synthesis": 60.0, "distillation": 60.0}),
    result("plain_w3a4", 1, 92.0, seconds_by_stage={"synthesis": 180.0, "distillation": 60.0}),
    result("better_w3a4", 0, 95.0),
    result("other_w2a2", 0, 50.0, weight_bits=2, activation_bits=2),
]


RUNS = [FinishedRun(result) for result in RESULTS]
STUDIES = sorted(path.parent for path in (ROOT / "experiments").glob("*/results"))


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_a_row_of_a_study_in_the_repository_has_every_seed_once(study: Path) -> None:
    """Or else results of different settings would be averaged as if they were seeds."""
    for row in summarize(collect([study])):
        assert len(set(row.seeds)) == len(row.seeds), row


def test_seeds_of_a_recipe_are_one_row() -> None:
    rows = {row.name: row for row in summarize(reversed(RUNS))}
    assert list(rows) == ["other_w2a2", "better_w3a4", "plain_w3a4"]
    plain = rows["plain_w3a4"]
    assert plain.seeds == (0, 1)
    assert plain.bits == (3, 4)
    assert plain.top1 == Spread(91.0, pytest.approx(2**0.5))
    assert plain.calibrated == Spread(61.25)
    assert plain.seconds == Spread(180.0, pytest.approx(120 / 2**0.5))


def test_runs_without_labels_have_no_accuracy() -> None:
    assert spread([None, None]) is None
    row = summarize(
        [FinishedRun(dataclasses.replace(make_result((None, None, None)), recipe="no_labels"))]
    )[0]
    assert row.top1 is None
    assert row.score == row.agreement
    assert best([row]) == set()


def test_the_best_of_ours_is_the_best_of_its_bits() -> None:
    rows = summarize(RUNS)
    high = Row("digits_resnet", (3, 4), "a paper", top1=Spread(99.0))
    assert {row.name for row in best([*rows, high])} == {"better_w3a4"}


def test_markdown_has_the_best_in_bold() -> None:
    lines = as_markdown(summarize(RUNS)).splitlines()
    assert lines[0].startswith("| model | W/A | recipe or method | seeds |")
    assert "| 3/4 | better_w3a4 | 0 | 98.50 | 61.25 | **95.00** | 97.12 |" in lines[3]
    assert "| 0, 1 | 98.50 | 61.25 | 91.00 ± 1.41 |" in lines[4]
    assert {line.count("|") for line in lines} == {lines[0].count("|")}


def test_csv_has_numbers_apart() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(summarize(RUNS)))))
    plain = rows[2]
    assert (plain["name"], plain["seeds"]) == ("plain_w3a4", "0 1")
    assert float(plain["top1_mean"]) == 91.0
    assert float(plain["top1_deviation"]) == pytest.approx(2**0.5)
    assert rows[0]["top1_deviation"] == ""


def test_latex_is_escaped_and_has_the_best_in_bold() -> None:
    text = as_latex(summarize(RUNS))
    assert r"better\_w3a4" in text
    assert r"\textbf{95.00}" in text
    assert r"91.00 $\pm$ 1.41" in text
    assert text.count(r"\\") == len(RESULTS)  # the header, and three rows
    assert "\x00" not in text


def test_html_is_escaped_and_has_the_best_in_bold() -> None:
    rows = [*summarize(RUNS), Row("m", (3, 4), "<script>", source="a & b")]
    text = as_html(rows)
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "a &amp; b" in text
    assert "<td><strong>95.00</strong></td>" in text
    assert text.count("<tr>") == 1 + len(rows)


def test_published_numbers_carry_their_source() -> None:
    rows = published([Row("resnet20_cifar10", (3, 3), "mine")])
    hast = [row for row in rows if row.name == "HAST" and row.bits == (3, 3)]
    assert [str(row.top1) for row in hast] == ["88.34"]
    assert all(row.source and not row.seeds for row in rows)
    assert published([Row("a network of mine", (3, 3), "mine")]) == []


def test_results_of_runs_and_of_studies_are_found(tmp_path: Path) -> None:
    for seed, entry in enumerate(RESULTS[:2]):
        entry.write(tmp_path / "runs" / str(seed) / "result.json")
        (tmp_path / "runs" / str(seed) / "origin.json").write_text("{}")
    RESULTS[2].write(tmp_path / "study" / "results" / "seed0.json")
    found = collect([tmp_path / "runs", tmp_path / "study"])
    assert [entry.result.recipe for entry in found] == ["plain_w3a4", "plain_w3a4", "better_w3a4"]


def test_folders_without_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(DataError, match=r"holds no result\.json"):
        collect([tmp_path])


def test_runs_that_differ_in_their_configuration_have_rows_of_their_own() -> None:
    switch = "distillation.promotion.enabled"
    runs = [
        FinishedRun(result("ablated", seed, 90.0 + on), {switch: on, "seed": seed})
        for on in (False, True)
        for seed in (0, 1)
    ]
    rows = summarize(runs)
    assert [(row.settings, row.seeds) for row in rows] == [("none", (0, 1)), ("promotion", (0, 1))]
    assert {row.settings for row in best(rows)} == {"promotion"}
