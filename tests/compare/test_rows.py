from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from hast_lightning.compare.notes import notes
from hast_lightning.compare.published import beside, published
from hast_lightning.compare.rows import (
    Row,
    Spread,
    best,
    spread,
    summarize,
    title,
)
from hast_lightning.compare.runs import FinishedRun, collect, unfinished
from hast_lightning.compare.settings import Settings
from hast_lightning.compare.tables import as_csv, as_html, as_latex, as_markdown, columns
from hast_lightning.errors import DataError
from hast_lightning.records.failure import Failure
from hast_lightning.records.result import Result
from tests.records.test_results_table import make_result

ROOT = Path(__file__).parents[2]


def result(recipe: str, seed: int, top1: float | None, **changes: object) -> Result:
    made = make_result((98.5, 61.25, top1))
    return dataclasses.replace(made, recipe=recipe, seed=seed, **changes)  # type: ignore[arg-type]


RESULTS = [
    result("plain_w3a4", 0, 90.0, seconds_by_stage={"synthesis": 60.0, "distillation": 60.0}),
    result("plain_w3a4", 1, 92.0, seconds_by_stage={"synthesis": 180.0, "distillation": 60.0}),
    result("better_w3a4", 0, 95.0),
    result("other_w2a2", 0, 50.0, weight_bits=2, activation_bits=2),
]


FAILURE = Failure("distillation", 1, 2, 0, "no memory", "OutOfMemoryError", None, 0)
INTERRUPTED = dataclasses.replace(FAILURE, reason="", kind="KeyboardInterrupt")
RUNS = [FinishedRun(result) for result in RESULTS]
STUDIES = sorted(path.parent for path in (ROOT / "experiments").glob("*/results"))


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_a_row_of_a_study_in_the_repository_has_every_seed_once(study: Path) -> None:
    """Or else results of different settings would be averaged as if they were seeds."""
    for row in summarize(collect([study])):
        assert len(set(row.seeds)) == len(row.seeds), row


def test_results_of_versions_without_methods_are_read_with_the_stages_of_today() -> None:
    """And their recipes say which method it was."""
    rows = {row.title: row for row in summarize(collect([ROOT / "experiments/cifar10_resnet20"]))}
    assert {name.partition("20_")[2]: row.method for name, row in rows.items()} == {
        "w3a3_alternating_quick": "hast_alternating",
        "w3a3_quick": "hast",
        "w3a3_recommended": "hast_adam",
        "w4a4_quick": "hast",
        "w4a4_recommended": "hast_adam",
    }
    turns = rows["cifar10_resnet20_w3a3_alternating_quick"]
    assert turns.stages == ("calibration", "alternation", "evaluation")
    assert str(turns.top1) == "80.53"
    quick = rows["cifar10_resnet20_w3a3_quick"]
    assert str(quick.top1) == "85.35 ± 1.11"
    assert not quick.without_synthesis
    assert rows["cifar10_resnet20_w4a4_quick"].without_synthesis


def behind_stages(**top1: float) -> dict[str, dict[str, dict[str, float]]]:
    """What was measured behind each stage."""
    return {stage: {"evaluation": {"top1": value}} for stage, value in top1.items()}


def test_a_course_has_the_mean_time_and_score_behind_each_stage_that_was_judged() -> None:
    times = ({"synthesis": 60.0, "calibration": 10.0, "distillation": 30.0, "evaluation": 5.0},)
    times += ({"synthesis": 80.0, "calibration": 10.0, "distillation": 50.0, "evaluation": 5.0},)
    scores = (
        behind_stages(calibration=50.0, distillation=90.0),
        behind_stages(calibration=60.0, distillation=92.0),
    )
    runs = [
        FinishedRun(result("net_w3a3", seed, 90.0, seconds_by_stage=seconds, judged=found))
        for seed, (seconds, found) in enumerate(zip(times, scores, strict=True))
    ]
    (row,) = summarize(runs)
    assert row.course == ((80.0, 55.0), (120.0, 91.0))
    # A stage that not all runs judged has no point, and the others keep theirs.
    other = dataclasses.replace(runs[1].result, judged=behind_stages(distillation=92.0))
    (row,) = summarize([runs[0], FinishedRun(other)])
    assert row.course == ((120.0, 91.0),)
    unknown = dataclasses.replace(runs[1].result, judged={})
    assert [row.course for row in summarize([runs[0], FinishedRun(unknown)])] == [()]


def sweep_of_methods() -> list[FinishedRun]:
    """The results of ``-m method=gdfq,hast quantizer.bits=3,4``."""
    return [
        FinishedRun(
            result(
                f"{method}_digits_resnet_w{bits}a{bits}",
                0,
                90.0 + bits,
                method=method,
                budget="demo",
                weight_bits=bits,
                activation_bits=bits,
            )
        )
        for method in ("gdfq", "hast")
        for bits in (3, 4)
    ]


def test_a_sweep_over_methods_and_bits_has_a_row_for_each_of_both() -> None:
    lines = as_markdown(summarize(sweep_of_methods())).splitlines()
    # The recipe is named after what is said beside it, and the budget is the same for all.
    assert lines[0].startswith("| model | W/A | method | seeds |")
    assert [line.split(" | ")[1:3] for line in lines[2:]] == [
        ["3/3", "gdfq"],
        ["3/3", "hast"],
        ["4/4", "gdfq"],
        ["4/4", "hast"],
    ]


def test_other_methods_and_budgets_are_no_seeds_of_one_row() -> None:
    made = [
        result("mine", seed, 90.0, method=method, budget=budget)
        for seed, (method, budget) in enumerate([("a", "quick"), ("b", "quick"), ("b", "released")])
    ]
    rows = summarize(map(FinishedRun, made))
    assert [(row.method, row.budget, row.seeds) for row in rows] == [
        ("a", "quick", (0,)),
        ("b", "quick", (1,)),
        ("b", "released", (2,)),
    ]
    assert (
        as_markdown(rows)
        .splitlines()[0]
        .startswith("| model | W/A | method | recipe | budget | seeds |")
    )


def test_seeds_of_a_recipe_are_one_row() -> None:
    rows = {row.name: row for row in summarize(reversed(RUNS))}
    assert list(rows) == ["other_w2a2", "better_w3a4", "plain_w3a4"]
    plain = rows["plain_w3a4"]
    assert plain.seeds == (0, 1)
    assert plain.bits == (3, 4)
    assert plain.top1 == Spread(91.0, pytest.approx(2**0.5))
    # Two seeds that agree have a deviation, of zero; the teacher is the same network.
    assert plain.calibrated == Spread(61.25, 0.0)
    assert plain.teacher == Spread(98.5)
    assert plain.seconds == Spread(180.0, pytest.approx(120 / 2**0.5))


def test_runs_without_labels_have_no_accuracy() -> None:
    assert spread([None, None]) is None
    row = summarize(
        [FinishedRun(dataclasses.replace(make_result((None, None, None)), recipe="no_labels"))]
    )[0]
    assert row.top1 is None
    assert row.score == row.agreement
    assert best([row]) == set()


def judged(recipe: str, error: float, top1: float | None = None) -> FinishedRun:
    """A run whose last stage of two was found to have an error on images of nobody's."""
    after = {
        "calibration": {"reference": {"error": 0.9}},
        "distillation": {"reference": {"error": error}},
    }
    return FinishedRun(result(recipe, 0, top1, judged=after))


def test_rows_without_labels_are_ranked_by_the_error_on_images_of_nobodys() -> None:
    """Not by the agreement, which is on samples that each method made itself."""
    easy = dataclasses.replace(judged("easy", 0.5).result, teacher_agreement=99.0)
    rows = summarize([FinishedRun(easy), judged("hard", 0.25)])
    assert [row.error for row in rows] == [Spread(0.5), Spread(0.25)]
    assert {row.name for row in best(rows)} == {"hard"}
    header, _, _, line = as_markdown(rows).splitlines()
    assert "error, no labels" in header
    assert "**0.25**" in line
    (written, _) = csv.DictReader(io.StringIO(as_csv(rows)))
    assert written["error_mean"] == "0.5"


def test_the_best_of_ours_is_the_best_of_its_bits() -> None:
    rows = summarize(RUNS)
    high = Row("digits_resnet", (3, 4), "a paper", top1=Spread(99.0))
    assert {row.name for row in best([*rows, high])} == {"better_w3a4"}


def test_markdown_has_the_best_in_bold() -> None:
    lines = as_markdown(summarize(RUNS)).splitlines()
    assert lines[0].startswith("| model | W/A | recipe | seeds |")
    assert "| 3/4 | better_w3a4 | 0 | 98.50 | 61.25 | **95.00** | 97.12 |" in lines[3]
    assert "| 0, 1 | 98.50 | 61.25 ± 0.00 | 91.00 ± 1.41 |" in lines[4]
    assert {line.count("|") for line in lines} == {lines[0].count("|")}


def test_csv_has_numbers_apart() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(summarize(RUNS)))))
    plain = rows[2]
    assert (plain["recipe"], plain["seeds"]) == ("plain_w3a4", "0 1")
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
    hast = [row for row in rows if row.method == "HAST" and row.bits == (3, 3)]
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


@pytest.mark.parametrize(
    ("recipe", "bits", "shown"),
    [
        ("digits_w3a3", (3, 3), "digits_w3a3"),
        ("digits_w3a3", (2, 2), "digits_w3a3 at W2A2"),
        ("cifar10_w4a4_quick", (4, 8), "cifar10_w4a4_quick at W4A8"),
        ("no bits in its name", (2, 2), "no bits in its name"),
        ("net_w3a32", (3, 3), "net_w3a32 at W3A3"),
    ],
)
def test_a_recipe_whose_bits_were_changed_says_so(
    recipe: str, bits: tuple[int, int], shown: str
) -> None:
    assert title(recipe, bits) == shown


def test_a_seed_counts_once_and_its_other_runs_are_named(tmp_path: Path) -> None:
    for number, (seed, top1) in enumerate([(0, 90.0), (1, 92.0), (0, 10.0)]):
        result("plain", seed, top1).write(tmp_path / f"run{number}" / "result.json")
    (row,) = summarize(collect([tmp_path]))
    assert row.seeds == (0, 1)
    assert row.top1 == Spread(91.0, pytest.approx(2**0.5))
    assert row.repeats == (f"{tmp_path / 'run2'} (seed 0)",)
    (note,) = notes([row])
    assert note.endswith(f"Left out: {tmp_path / 'run2'} (seed 0)")
    assert notes([row])[0] in as_markdown([row], notes([row]))
    assert next(csv.DictReader(io.StringIO(as_csv([row]))))["repeated_runs"] == "1"
    # The order in which runs are named decides.
    (turned,) = summarize(collect([tmp_path / "run2", tmp_path]))
    assert turned.top1 == Spread(51.0, pytest.approx(41 * 2**0.5))


def test_the_same_folder_named_twice_is_one_run(tmp_path: Path) -> None:
    result("plain", 0, 90.0).write(tmp_path / "a" / "result.json")
    (row,) = summarize(collect([tmp_path, tmp_path / "a", f"{tmp_path}/*"]))
    assert (row.seeds, row.repeats) == ((0,), ())


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({"steps_by_stage": {"synthesis": 1, "distillation": 9}}, "distillation.steps=9"),
        ({"steps_by_stage": {"synthesis": 9, "distillation": 1}}, "synthesis.steps=9"),
        ({"evaluated_images": 9}, "evaluated_images=9"),
        ({"model_checksum": "abcdef0123"}, "model_checksum=abcdef01"),
        ({"agreement_on": "evaluation images"}, "agreement_on=evaluation images"),
    ],
)
def test_runs_that_differ_in_what_the_result_says_are_not_averaged(
    changes: dict[str, object], settings: str
) -> None:
    """Also without configurations, as in the studies."""
    runs = [FinishedRun(result("plain", 0, 90.0)), FinishedRun(result("plain", 1, 92.0, **changes))]
    rows = {str(row.settings): row for row in summarize(runs)}
    assert len(rows) == 2
    assert rows[settings].seeds == (1,)


def test_other_weights_or_images_are_ranked_apart() -> None:
    """An accuracy on a hundred images is no better than a lower one on ten thousand."""
    other = [
        result("small", 0, 99.0, evaluated_images=100),
        result("smaller", 0, 98.0, evaluated_images=100),
    ]
    rows = summarize([*RUNS, *map(FinishedRun, other)])
    assert {row.name for row in best(rows)} == {"better_w3a4", "small"}
    # And the table says how many there were.
    assert "| images |" in as_markdown(rows).splitlines()[0]
    assert "| images |" not in as_markdown(summarize(RUNS)).splitlines()[0]


@pytest.mark.parametrize(
    "made",
    [
        {"command": "python -m hast_lightning seed=1 sources.bank.load=bank0/s.safetensors"},
        {"command": "python -m hast_lightning synthesis.load=bank0/s.safetensors seed=1"},
        {"saved": {"sources": {"calibration": {"load": None}, "bank": {"load": "bank0"}}}},
    ],
    ids=["command", "former_command", "configuration"],
)
def test_seconds_are_those_of_whole_runs_or_marked(made: dict[str, Any]) -> None:
    whole = {"synthesis": 100.0, "distillation": 10.0}
    steps = {"distillation": 1}
    facts = {"seconds_by_stage": {"distillation": 10.0}, "steps_by_stage": steps}
    command = {"command": made["command"]} if "command" in made else {}
    loaded = FinishedRun(result("plain", 0, 90.0, **facts, **command), made.get("saved", {}))
    (mixed,) = summarize([loaded, FinishedRun(result("plain", 1, 90.0, seconds_by_stage=whole))])
    assert mixed.seconds == Spread(110.0)
    assert not mixed.without_synthesis
    (row,) = summarize([loaded])
    assert "| 10† |" in as_markdown([row])
    assert r"10$\dagger$" in as_latex([row])
    assert notes([row]) == ["† Without a synthesis: the images were there already."]


@pytest.mark.parametrize(
    ("seconds", "shown"), [({}, "-"), ({"synthesis": 0.26}, "0.3"), ({"synthesis": 1234.5}, "1234")]
)
def test_seconds_are_as_exact_as_they_are_long(seconds: dict[str, float], shown: str) -> None:
    runs = [
        FinishedRun(result("plain", 0, 90.0, seconds_by_stage=seconds)),
        FinishedRun(result("other", 0, 90.0, seconds_by_stage={"synthesis": 10.0})),
    ]
    assert as_markdown(summarize(runs)).splitlines()[-1].endswith(f"| {shown} |")


def test_versions_that_are_mixed_in_a_row_are_noted() -> None:
    runs = [
        FinishedRun(result("plain", seed, 90.0, versions={"torch": version}))
        for seed, version in enumerate(("2.11", "2.12"))
    ]
    assert notes(summarize(runs)) == [
        "Runs of several versions in one row: plain 3/4: torch 2.11, 2.12"
    ]


def test_runs_without_a_result_are_named_with_their_reason(tmp_path: Path) -> None:
    result("plain", 0, 90.0).write(tmp_path / "0" / "result.json")
    files = {
        "0/config.yaml": "",
        "1/config.yaml": "",
        "1/failure.json": json.dumps(dataclasses.asdict(FAILURE)),
        "2/config.yaml": "",
        "2/failure.json": "{",
        "3/job_failure.json": json.dumps({"message": "ran out\nof disk"}),
        "4/config.yaml": "",
        "4/failure.json": json.dumps(dataclasses.asdict(INTERRUPTED)),
        "5/config.yaml": "seed: 0\nevaluate: false\n",
        "0/.hydra/config.yaml": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    named = unfinished([tmp_path])
    assert named == [
        f"{tmp_path / '1'}: failed at step 1 of 2 of stage distillation: no memory",
        f"{tmp_path / '2'}: killed, or still running",
        f"{tmp_path / '3'}: ran out of disk",
        f"{tmp_path / '4'}: interrupted at step 1 of 2 of stage distillation",
        f"{tmp_path / '5'}: without evaluation (evaluate=false), killed, or still running",
    ]
    assert notes([], named)[0] == f"Left out, without a result: {named[0]}"
    ended = r"no result.json; 1 of the runs there did not come to an end: .*1: failed at .*: no mem"
    with pytest.raises(DataError, match=ended):
        collect([tmp_path / "1"])


def test_a_run_may_lie_in_a_folder_that_is_called_results(tmp_path: Path) -> None:
    result("plain", 0, 90.0).write(tmp_path / "results" / "result.json")
    for name in ("config.yaml", "origin.json"):
        (tmp_path / "results" / name).write_text("{}")
    assert len(collect([tmp_path])) == 1


def test_studies_and_runs_below_one_folder_are_all_found(tmp_path: Path) -> None:
    """Files of a study do not hide behind runs of another."""
    RESULTS[0].write(tmp_path / "study" / "results" / "seed0.json")
    RESULTS[1].write(tmp_path / "runs" / "1" / "result.json")
    for names in ([tmp_path], [f"{tmp_path}/**"], [f"{tmp_path}/*/*"]):
        assert len(collect(names)) == 2
    assert len(collect([tmp_path / "study" / "results"])) == 1
    assert len(collect([tmp_path / "study" / "results" / "seed0.json"])) == 1


def test_a_pattern_takes_results_alone_and_brackets_are_names_too(tmp_path: Path) -> None:
    RESULTS[0].write(tmp_path / "run[0]" / "result.json")
    (tmp_path / "run[0]" / "origin.json").write_text("{}")
    assert len(collect([tmp_path / "run[0]"])) == 1
    assert len(collect([f"{tmp_path}/*/*"])) == 1


def test_published_numbers_are_below_ours_of_the_same_bits() -> None:
    ours = [Row("resnet20_cifar10", bits, "mine", seeds=(0,)) for bits in ((3, 3), (4, 4))]
    rows = beside(ours, published(ours))
    assert [row.bits for row in rows] == sorted(row.bits for row in rows)
    first = [row.name for row in rows if row.bits == (4, 4)]
    assert first[:2] == ["mine", "GDFQ"]
    assert any("other teachers" in note for note in notes(rows))


AWKWARD = r"50%_a&b{c}#$~^\|<>"


def test_latex_escapes_every_special_character() -> None:
    text = as_latex([Row("m", (3, 4), AWKWARD, seeds=(0,))])
    assert (
        r"50\%\_a\&b\{c\}\#\$\textasciitilde{}\textasciicircum{}\textbackslash{}"
        r"\textbar{}\textless{}\textgreater{} &"
    ) in text
    assert as_latex([Row("m", (3, 4), "x")], ["50 %\nof"]).startswith("% 50 % of\n")


def test_markdown_cells_stay_cells() -> None:
    lines = as_markdown([Row("m", (3, 4), "a|b\n*c* <d>", seeds=(0,))]).splitlines()
    assert lines[2] == r"| m | 3/4 | a\|b \*c\* \<d> | 0 |"


def test_csv_is_quoted_and_holds_no_formula() -> None:
    rows = [Row("m", (3, 4), name, seeds=(0,)) for name in ('a, "b"\nc', "=1+1", "@x", "plain")]
    read = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert [row["method"] for row in read] == ['a, "b"\nc', "'=1+1", "'@x", "plain"]


def test_a_single_run_is_a_table_without_bold_or_deviation() -> None:
    text = as_markdown(summarize(RUNS[:1]))
    assert "**" not in text and "±" not in text


def test_a_table_in_html_has_its_header_marked() -> None:
    text = as_html(summarize(RUNS))
    assert text.count('<th scope="col">') == text.splitlines()[2].count("</th>") > 0
    assert "<td" not in text.splitlines()[2]


def test_only_settings_may_be_wrapped_in_html() -> None:
    """They are as long as they like, and would push what is measured out of view."""
    first, *others = summarize(RUNS)
    rows = [dataclasses.replace(first, settings=Settings(others=("kd.weight=20.0",))), *others]
    places = [name for name, _ in columns(rows)]
    assert "settings" in places
    lines = [line for line in as_html(rows).splitlines() if line.startswith("<tr><td")]
    assert len(lines) == len(rows)
    for line in lines:
        tags = re.findall("<td[^>]*>", line)
        assert dict(zip(places, tags, strict=True)) == {
            name: '<td class="words">' if name == "settings" else "<td>" for name in places
        }


def test_mixed_bits_are_told_apart_from_bits_of_all_layers() -> None:
    runs = [
        FinishedRun(result("pure_w3a4", 0, 90.0)),
        FinishedRun(result("ends_w3a4", 0, 95.0, mixed=True)),
        # Of one recipe too, where no configuration tells what differs.
        FinishedRun(result("pure_w3a4", 1, 96.0, mixed=True)),
    ]
    rows = summarize(runs[:2])
    assert best(rows) == set()
    text = as_markdown(rows)
    assert "**" not in text
    assert "| 3/4 mixed | ends_w3a4 |" in text and "| 3/4 | pure_w3a4 |" in text
    written = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert {line["recipe"]: line["mixed"] for line in written} == {
        "pure_w3a4": "0",
        "ends_w3a4": "1",
    }
    rows = summarize(runs)
    assert [(row.name, row.mixed, row.seeds) for row in rows] == [
        ("pure_w3a4", False, (0,)),
        ("ends_w3a4", True, (0,)),
        ("pure_w3a4", True, (1,)),
    ]
    assert [(row.name, row.mixed) for row in best(rows)] == [("pure_w3a4", True)]


def test_errors_of_outputs_and_perplexities_have_columns() -> None:
    changes = {"teacher_agreement": None, "output_error": 0.00125}
    values = [result("values_w3a4", seed, None, **changes) for seed in (0, 1)]
    texts = [
        result("texts_w3a4", seed, 40.0, quantized_perplexity=perplexity)
        for seed, perplexity in enumerate((20.5, 21.5))
    ]
    rows = summarize(map(FinishedRun, [*values, *texts]))
    header, _, of_texts, of_values = as_markdown(rows).splitlines()
    assert "| error of outputs |" in header and "| perplexity |" in header
    assert "| 21.00 ± 0.71 |" in of_texts
    assert "| 0.00125 ± 0 |" in of_values
    text, value = csv.DictReader(io.StringIO(as_csv(rows)))
    assert float(text["perplexity_mean"]) == 21.0
    assert float(value["output_error_mean"]) == 0.00125
    # Nothing more where neither was measured.
    assert "perplexity" not in as_markdown(summarize(RUNS)).splitlines()[0]


def test_files_of_wandb_are_no_runs(tmp_path: Path) -> None:
    result("plain", 0, 90.0).write(tmp_path / "0" / "result.json")
    for name in ("0/wandb/offline-run-1/files", "wandb/mine"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("")
    assert unfinished([tmp_path]) == [f"{tmp_path / 'wandb/mine'}: killed, or still running"]
