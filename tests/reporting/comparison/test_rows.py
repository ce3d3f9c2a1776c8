from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path

import pytest

from hast_lightning.errors import DataError
from hast_lightning.reporting.comparison.rows import (
    Row,
    Spread,
    best,
    over_seeds,
    published,
    spread,
    summarize,
    title,
)
from hast_lightning.reporting.comparison.runs import SWITCHES, FinishedRun, collect
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
    assert spread([]) is None
    assert over_seeds(RESULTS[:2], lambda _: None) is None
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


def ablated(seed: int, *parts: str, **config: object) -> FinishedRun:
    """A run with these parts of the method, and 90 % plus their number."""
    switches = {key: name in parts for key, name in SWITCHES.items()}
    made = result("ablated_w3a4", seed, 90.0 + len(parts) + 0.1 * seed)
    return FinishedRun(made, {**switches, "seed": seed, **config})


ALL = tuple(SWITCHES.values())


def test_runs_that_differ_in_their_configuration_have_rows_of_their_own() -> None:
    runs = [ablated(seed, *parts) for parts in ((), ("hardness",), ALL) for seed in (0, 1)]
    rows = summarize(runs)
    assert [(row.settings, row.seeds) for row in rows] == [
        ("hardness", (0, 1)),
        ("hardness + promotion + alignment", (0, 1)),
        ("none", (0, 1)),
    ]
    assert {row.settings for row in best(rows)} == {"hardness + promotion + alignment"}


def test_a_row_without_one_part_names_the_others() -> None:
    rows = summarize([ablated(0, *ALL), ablated(0, "hardness", "alignment")])
    assert [row.settings for row in rows] == [
        "hardness + alignment",
        "hardness + promotion + alignment",
    ]


def test_parts_are_apart_from_what_else_differs() -> None:
    runs = [
        ablated(0, *parts, **{"quantizer.name": quantizer})
        for parts in (("hardness",), ALL)
        for quantizer in ("lsq", "minmax")
    ]
    rows = summarize(runs)
    assert {(row.parts, row.others) for row in rows} == {
        (parts, f"quantizer.name={quantizer}")
        for parts in (("hardness",), ALL)
        for quantizer in ("lsq", "minmax")
    }
    assert rows[0].settings == "hardness + promotion + alignment, quantizer.name=lsq"


def test_a_recipe_whose_bits_were_changed_is_not_called_by_the_old_ones() -> None:
    assert title("digits_w3a3", (3, 3)) == "digits_w3a3"
    assert title("digits_w3a3", (2, 2)) == "digits"
    assert title("cifar10_resnet20_w3a3_recommended", (4, 4)) == "cifar10_resnet20_recommended"
    assert title("mine", (4, 4)) == "mine"
    swept = [result("digits_w3a4", 0, 90.0), result("digits_w3a4", 0, 80.0, weight_bits=2)]
    names = [(row.name, row.bits) for row in summarize(map(FinishedRun, swept))]
    assert names == [("digits", (2, 4)), ("digits_w3a4", (3, 4))]


def test_runs_of_one_seed_count_once() -> None:
    """Twice the same number would make the deviation look smaller than it is."""
    runs = [ablated(seed, *ALL) for seed in (0, 0, 0, 1)]
    (row,) = summarize(runs)
    assert (row.seeds, row.runs) == ((0, 1), 4)
    assert row.top1 == Spread(pytest.approx(93.05), pytest.approx(0.1 / 2**0.5))
    assert "| 0, 1 (4 runs) |" in as_markdown([row])
    assert next(csv.DictReader(io.StringIO(as_csv([row]))))["runs"] == "4"


def test_loaded_samples_and_own_ones_are_two_experiments() -> None:
    loads = (None, "bank0.safetensors", "bank1.safetensors")
    runs = [ablated(n, *ALL, **{"synthesis.load": load}) for n, load in enumerate(loads)]
    rows = summarize(runs)
    assert [(row.settings, row.seeds) for row in rows] == [
        ("samples=loaded", (1, 2)),
        ("samples=own", (0,)),
    ]


@pytest.mark.parametrize(
    ("change", "settings"),
    [
        ({"model_checksum": "f" * 64}, "weights=ffffffff"),
        ({"evaluated_images": 7}, "images=7"),
        ({"student_steps": 7}, "student_steps=7"),
        ({"agreement_on": "held-out"}, "measured on=held-out"),
    ],
)
def test_what_cannot_be_averaged_is_apart(change: dict[str, object], settings: str) -> None:
    results = [result("plain", 0, 90.0), result("plain", 1, 91.0, **change)]
    rows = summarize(map(FinishedRun, results))
    assert {row.seeds for row in rows} == {(0,), (1,)}
    assert settings in {row.settings for row in rows}


def test_a_key_that_an_older_run_does_not_know_still_tells_the_others_apart() -> None:
    runs = [ablated(0, *ALL), *(ablated(0, *ALL, new=value) for value in (1, 2))]
    assert [row.settings for row in summarize(runs)] == ["", "new=1", "new=2"]


def test_what_comes_along_with_an_option_is_not_said_beside_its_name() -> None:
    def run(name: str, **quantizer: object) -> FinishedRun:
        return ablated(
            0,
            *ALL,
            **{f"quantizer.{k}": v for k, v in quantizer.items()} | {"quantizer.name": name},
        )

    options = [run("minmax", include_zero=False), run("deploy", include_zero=True)]
    assert [row.settings for row in summarize(options)] == [
        "quantizer.name=deploy",
        "quantizer.name=minmax",
    ]
    changed = [*options, run("minmax", include_zero=True)]
    assert [row.settings for row in summarize(changed)] == [
        "quantizer.include_zero=False, quantizer.name=minmax",
        "quantizer.include_zero=True, quantizer.name=deploy",
        "quantizer.include_zero=True, quantizer.name=minmax",
    ]


def test_two_recipes_at_the_same_changed_bits_keep_their_names() -> None:
    swept = [
        result(recipe, 0, 90.0, weight_bits=4, activation_bits=4)
        for recipe in ("digits_w2a2", "digits_w3a3")
    ]
    assert [row.name for row in summarize(map(FinishedRun, swept))] == [
        "digits_w2a2",
        "digits_w3a3",
    ]


@pytest.mark.parametrize(
    ("setting", "rows"),
    [
        ({"trainer.precision": "bf16-mixed"}, 2),
        ({"trainer.devices": 4}, 2),
        ({"trainer.threads": 1}, 1),
        ({"trainer.micro_batch": 8}, 1),
    ],
)
def test_of_the_trainer_only_what_changes_numbers_counts(
    setting: dict[str, object], rows: int
) -> None:
    plain = dict.fromkeys(setting, None)
    assert len(summarize([ablated(0, *ALL, **plain), ablated(1, *ALL, **setting)])) == rows


def test_nothing_is_the_best_of_what_was_measured_on_something_else() -> None:
    few = result("few_w3a4", 0, 99.0, evaluated_images=10)
    assert {row.name for row in best(summarize(map(FinishedRun, [*RESULTS, few])))} == {
        "better_w3a4"
    }
