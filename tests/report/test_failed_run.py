"""The page of a run that failed: why on top, and what there is below."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hast_lightning.errors import ExportError
from hast_lightning.records.failure import FAILURE_FILE
from hast_lightning.records.folder import REPORT_FILE, RESULT_FILE
from hast_lightning.report import page
from hast_lightning.runs import exporting
from tests.command_line import TINY, call
from tests.report.pages import Page
from tests.small_runs import diverge_at_the_second_student_step

RUN = (*TINY, "trainer.threads=1", "hydra.run.dir=run")


@pytest.fixture
def diverges(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second student step spoils a weight."""
    diverge_at_the_second_student_step(monkeypatch)


@pytest.mark.usefixtures("diverges")
def test_it_says_where_and_why_and_shows_what_was_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = call(*RUN, "callbacks.checkpoint_every_n_steps=1", folder=tmp_path).refusal()
    found = Page((tmp_path / "run" / REPORT_FILE).read_text(encoding="utf-8"))
    text = found.texts()
    assert "Failed at step 2 of 3 of stage distillation" in text
    assert reason in text
    assert "resume=<this folder> goes on from its checkpoint last.ckpt." in text
    # The weights are no longer numbers: nothing that a network would have to say is there.
    assert set(found.attributes("id")) >= {"setup", "curves", "again"}
    assert not {"result", "samples", "layers"} & set(found.attributes("id"))

    monkeypatch.undo()
    assert call("resume=run", folder=tmp_path).status == 0
    text = (tmp_path / "run" / REPORT_FILE).read_text(encoding="utf-8")
    assert "Failed at" not in text and 'id="result"' in text


@pytest.mark.usefixtures("diverges")
def test_without_a_report_there_is_no_page(tmp_path: Path) -> None:
    call(*RUN, "report=false", folder=tmp_path).refusal()
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert FAILURE_FILE in names and REPORT_FILE not in names


@pytest.mark.usefixtures("diverges")
def test_a_page_that_fails_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no room for a page")

    monkeypatch.setattr(page, "outline", fail)
    assert "distillation" in call(*RUN, folder=tmp_path).refusal()
    assert not (tmp_path / "run" / REPORT_FILE).exists()


def test_an_export_that_fails_stands_above_the_whole_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ExportError("the packed file is not the student")

    monkeypatch.setattr(exporting, "_prove", refuse)
    assert call(*RUN, folder=tmp_path).status == 2
    assert (tmp_path / "run" / RESULT_FILE).exists()
    found = Page((tmp_path / "run" / REPORT_FILE).read_text(encoding="utf-8"))
    text = found.texts()
    assert "Failed after the last step" in text
    assert "the packed file is not the student" in text
    assert "The result below was measured before and stands." in text
    assert {"result", "samples", "layers"} <= set(found.attributes("id"))
