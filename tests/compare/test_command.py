"""``command=compare`` through the command line, and what it refuses."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hast_lightning.compare.command import PAGE
from hast_lightning.config import TABLE_FORMATS
from tests.command_line import Finished, call, content
from tests.records.test_results_table import make_result

PLAIN = ("compare.plots=[]", "compare.formats=[markdown,csv]", "compare.published=false")


def compare(folder: Path, *arguments: str) -> Finished:
    return call("command=compare", *arguments, folder=folder)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A working directory with two finished runs in ``outputs``."""
    for seed, top1 in enumerate((90.0, 92.0)):
        made = dataclasses.replace(make_result((98.5, 61.25, top1)), seed=seed, recipe="plain")
        made.write(tmp_path / "outputs" / str(seed) / "result.json")
    return tmp_path


def test_it_writes_and_prints_one_row_a_recipe(runs: Path) -> None:
    finished = compare(runs, "runs=outputs", *PLAIN)
    assert (finished.status, finished.err) == (0, "")
    written = {path.name for path in (runs / "comparison").iterdir()}
    assert written == {"comparison.md", "comparison.csv"}
    markdown = (runs / "comparison" / "comparison.md").read_text(encoding="utf-8")
    assert markdown.strip() in finished.out
    assert "91.00" in markdown
    with (runs / "comparison" / "comparison.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert "plain" in row.values()
    # It makes no run of its own.
    assert {path.name for path in runs.iterdir()} == {"outputs", "comparison"}


def test_every_format_and_plot_goes_where_it_is_asked_to(runs: Path) -> None:
    pytest.importorskip("matplotlib")
    chosen = ("compare.folder=a/b", "compare.formats=[latex,html]", "compare.plots=[svg]")
    assert compare(runs, "runs=[outputs/0,outputs/1]", *chosen).status == 0
    names = {path.name for path in (runs / "a" / "b").iterdir()}
    assert {"comparison.tex", "comparison.html"} <= names
    assert all(name.endswith((".tex", ".html", ".svg")) for name in names)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "command=compare needs runs=<folder>"),
        (("runs=[]",), "command=compare needs runs=<folder>"),
        (("runs=nowhere",), "nowhere does not exist"),
        (("runs=outputs/*w3a3*",), "outputs/*w3a3* does not exist"),
        (("runs=[outputs,nowhere]",), "nowhere does not exist"),
        (("runs=empty",), "empty holds no result.json"),
        (("runs=outputs", "compare.formats=[pdf]"), "compare.formats="),
        (("runs=outputs", "compare.plots=[gif]"), "compare.plots="),
        (("runs=outputs", "compare.folder=a_file"), "compare.folder=a_file cannot be written to"),
        (("runs=outputs", "compare.format=[csv]"), "compare.format is no key"),
    ],
)
def test_it_refuses_in_one_line(runs: Path, arguments: tuple[str, ...], reason: str) -> None:
    (runs / "empty").mkdir()
    (runs / "a_file").write_text("not a folder", encoding="utf-8")
    before = content(runs)
    assert reason in compare(runs, *arguments).refusal()
    assert content(runs) == before
    assert not (runs / "comparison").exists()


def test_an_unknown_format_is_answered_with_those_there_are(runs: Path) -> None:
    line = compare(runs, "runs=outputs", "compare.formats=[pdf]").refusal()
    assert line == f"compare.formats='pdf' is not one of: {', '.join(sorted(TABLE_FORMATS))}"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
        ("[]", "holds no fields"),
        ('{"recipe": "x"}', "lacks: "),
        ("extra", "has unknown fields: surplus"),
        ("nan", "is not valid JSON"),
        ("infinite", "quantized_top1 is inf"),
        ("text", "quantized_top1='90' is not of type float | None"),
        ("seed", "seed=True is not of type int"),
        ("stages", "seconds_by_stage=[] is not of type dict[str, float]"),
    ],
)
def test_a_result_that_is_damaged_is_refused_by_name(runs: Path, damage: str, reason: str) -> None:
    path = runs / "outputs" / "1" / "result.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    texts = {
        "extra": json.dumps(whole | {"surplus": 1}),
        "nan": json.dumps(whole | {"quantized_top1": float("nan")}),
        "infinite": json.dumps(whole | {"quantized_top1": "?"}).replace('"?"', "1e999"),
        "text": json.dumps(whole | {"quantized_top1": "90"}),
        "seed": json.dumps(whole | {"seed": True}),
        "stages": json.dumps(whole | {"seconds_by_stage": []}),
    }
    path.write_text(texts.get(damage, damage), encoding="utf-8")
    line = compare(runs, "runs=outputs").refusal()
    assert "outputs/1/result.json" in line and reason in line
    assert not (runs / "comparison").exists()


def test_a_configuration_that_is_damaged_is_refused_by_name(runs: Path) -> None:
    (runs / "outputs" / "0" / "config.yaml").write_text("a: [", encoding="utf-8")
    line = compare(runs, "runs=outputs").refusal()
    assert "outputs/0/config.yaml cannot be read" in line


def test_runs_without_a_result_are_left_out_and_said_so(runs: Path) -> None:
    (runs / "outputs" / "2").mkdir()
    (runs / "outputs" / "2" / "config.yaml").write_text("seed: 2", encoding="utf-8")
    finished = compare(runs, "runs=outputs", *PLAIN)
    assert (finished.status, finished.err) == (0, "")
    assert "Left out, without a result: outputs/2: killed, or still running" in finished.out


def test_no_plots_means_none_in_the_page_either(runs: Path) -> None:
    assert compare(runs, "runs=outputs", "compare.plots=[]").status == 0
    page = (runs / "comparison" / "comparison.html").read_text(encoding="utf-8")
    assert "<table>" in page and "<img" not in page


def test_the_page_is_one_file_that_fetches_nothing(runs: Path) -> None:
    pytest.importorskip("matplotlib")
    other = dataclasses.replace(
        make_result((98.5, 61.25, 80.0)), recipe="other", weight_bits=4, activation_bits=4
    )
    other.write(runs / "outputs" / "other" / "result.json")
    assert compare(runs, "runs=outputs", "compare.plots=[png]").status == 0
    page = (runs / "comparison" / "comparison.html").read_text(encoding="utf-8")
    sources = re.findall(r"(?:src|href)=.([^\"']{12})", page)
    assert sources and set(sources) == {"data:image/p"}
    assert "http" not in page.lower() and page.count("<script") == 1


def test_no_other_command_takes_runs(runs: Path) -> None:
    assert "no other command takes them" in call("runs=outputs", folder=runs).refusal()


def test_a_name_that_is_no_text_is_written_and_printed(tmp_path: Path) -> None:
    made = dataclasses.replace(make_result((98.5, 61.25, 90.0)), recipe="caf\udce9")
    made.write(tmp_path / "outputs" / "result.json")
    formats = "compare.formats=[markdown,csv,latex,html]"
    code = "from hast_lightning.cli.main import main; main()"
    words = ("command=compare", "runs=outputs", "compare.plots=[]", formats)
    run = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "| caf\\udce9 |" in run.stdout
    for ending in ("csv", "html"):
        assert "caf\\udce9" in (tmp_path / f"comparison/comparison.{ending}").read_text("utf-8")


def test_long_words_of_notes_are_broken_on_a_narrow_screen() -> None:
    assert "li { overflow-wrap: anywhere }" in PAGE.format(table="", pictures="", sorting="")
