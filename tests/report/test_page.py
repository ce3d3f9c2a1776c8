"""The page as text: escaped, whole, and in need of nothing else."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hast_lightning.report import page
from hast_lightning.report.content import RunReport
from hast_lightning.runs.assembly import Run
from tests.report.pages import DOT, Page, report

HOSTILE = "<script>document.title='run'</script>\"'><img src=x onerror=alert(1)>&{{ 7*7 }}"
SECTIONS = (
    *("result", "setup", "curves", "samples", "difficulty", "layers", "confusion", "exports"),
    "again",
)


def test_nothing_of_what_a_page_is_told_becomes_a_tag_or_an_attribute() -> None:
    plain, hostile = Page(page.render(report("plain"))), Page(page.render(report(HOSTILE)))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(found) for _, found in hostile.tags] == [
        sorted(found) for _, found in plain.tags
    ]
    assert "script" not in {tag for tag, _ in hostile.tags}
    # As text it is there, to the letter.
    assert HOSTILE in hostile.texts()


def test_a_picture_is_an_attribute_that_cannot_be_left() -> None:
    found = Page(page.render(report(picture='x" onerror="alert(1)')))
    assert not found.attributes("onerror")


def test_the_page_is_whole_and_names_nothing_outside_of_it() -> None:
    text = page.render(report())
    found = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert found.unclosed == [] and found.open == []
    assert {tag for tag, _ in found.tags} & {"script", "iframe", "object", "embed", "form"} == set()
    assert set(found.attributes("src")) == {DOT}
    targets = {value for value in found.attributes("href") if value is not None}
    assert targets == {"data:,", *(f"#{name}" for name in SECTIONS)}
    assert "url(" not in text and "@import" not in text
    (policy,) = [
        found["content"]
        for _, found in found.tags
        if found.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None and "default-src 'none'" in policy and "script-src" not in policy


def test_every_section_can_be_reached_and_names_are_given_once() -> None:
    identifiers = Page(page.render(report())).attributes("id")
    assert set(SECTIONS) <= set(identifiers)
    assert len(identifiers) == len(set(identifiers))


def test_pictures_charts_and_tables_speak_to_those_who_cannot_see_them() -> None:
    found = Page(page.render(report()))
    (alternative, _) = [tags["alt"] for tag, tags in found.tags if tag == "img"]
    assert alternative == (
        "Image of class plain; the teacher sees plain, the student plain; difficulty 0.25"
    )
    identifiers = found.attributes("id")
    charts = [tags for tag, tags in found.tags if tag == "svg" and tags.get("role") == "img"]
    assert len(charts) == 2
    for chart in charts:
        assert set(str(chart["aria-labelledby"]).split()) <= set(identifiers)
    headers = [tags for tag, tags in found.tags if tag == "th"]
    assert headers and all(tags.get("scope") in ("col", "row") for tags in headers)


def test_images_are_called_what_they_are() -> None:
    made, taken = (replace(report(), synthetic=synthetic) for synthetic in (True, False))
    assert "Synthetic images, easy against hard" in Page(page.render(made)).texts()
    assert "Own images, easy against hard" in Page(page.render(taken)).texts()


def test_what_was_not_measured_is_left_out() -> None:
    found = Page(page.render(RunReport(title="only", subtitle="images", command="typed")))
    assert set(found.attributes("id")) == {"setup", "again"}
    assert "typed" in found.texts() and found.unclosed == []


def test_numbers_are_shown_with_their_units() -> None:
    text = Page(page.render(report())).texts()
    assert "top-1 %" in text and "99.00" in text
    assert "mean loss: 0.5, promoted 0.75" in text
    assert "2 17.0" in text  # error in percent, SQNR in decibels
    assert "not calibrated" in text
    assert "12.5" in text and "never shown" not in text
    assert "Stage plain: 1,200 steps" in text and "Stage inside plain" in text


@pytest.mark.parametrize("error", [RuntimeError("no room"), OSError(28, "full"), KeyError("x")])
def test_a_page_that_fails_is_a_warning_and_leaves_no_half_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def fail(*_: Any) -> RunReport:
        raise error

    monkeypatch.setattr(page, "gather", fail)
    with caplog.at_level(logging.WARNING):
        page.write_report(cast(Run, SimpleNamespace(folder=tmp_path)), None)
    assert "report.html was not written" in caplog.text and type(error).__name__ in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_is_no_failed_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> RunReport:
        raise KeyboardInterrupt

    monkeypatch.setattr(page, "gather", interrupted)
    with pytest.raises(KeyboardInterrupt):
        page.write_report(cast(Run, SimpleNamespace(folder=tmp_path)), None)
