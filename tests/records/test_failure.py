"""What a run that came to no end says of itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hast_lightning.records.failure import FAILURE_FILE, Failure, how_it_ended, read_failure
from hast_lightning.training.callbacks.checkpoint import LastCheckpoint
from tests.command_line import TINY, call
from tests.small_runs import diverge_at_the_second_student_step

FAILURE = Failure("distillation", 2, 3, 9, "why", "DivergenceError", "last.ckpt", 0)


def test_a_diverged_run_says_where_and_keeps_the_last_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverge_at_the_second_student_step(monkeypatch)
    arguments = (*TINY, "callbacks.checkpoint_every_n_steps=1", "hydra.run.dir=run")
    refusal = call(*arguments, folder=tmp_path).refusal()
    failure = read_failure(tmp_path / "run")
    assert failure is not None
    assert failure.reason == refusal
    assert (failure.stage, failure.step, failure.total) == ("distillation", 2, 3)
    assert (failure.kind, failure.checkpoint, failure.rank) == ("DivergenceError", "last.ckpt", 0)
    saved = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert saved["iteration"] == failure.iteration
    assert all(
        value.isfinite().all()
        for k, value in saved["state_dict"].items()
        if "student" in k and value.is_floating_point()
    )
    monkeypatch.undo()
    assert call("resume=run", folder=tmp_path).status == 0
    assert read_failure(tmp_path / "run") is None


def test_an_interrupted_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: LastCheckpoint, trainer: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LastCheckpoint, "save", interrupt)
    assert call(*TINY, "hydra.run.dir=run", folder=tmp_path).status == 130
    failure = read_failure(tmp_path / "run")
    assert failure is not None
    assert (failure.kind, failure.checkpoint) == ("KeyboardInterrupt", None)


def test_the_first_process_that_fails_is_believed(tmp_path: Path) -> None:
    FAILURE.write(tmp_path)
    Failure("x", 1, 1, 1, "lost another process", "LostProcessError", None, 1).write(tmp_path)
    assert read_failure(tmp_path) == FAILURE
    assert [file.name for file in tmp_path.iterdir()] == [FAILURE_FILE]


def test_a_folder_that_is_gone_hides_nothing(tmp_path: Path) -> None:
    FAILURE.write(tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "headline"),
    [
        ("DivergenceError", "failed at step 2 of 3 of stage distillation: why"),
        ("KeyboardInterrupt", "interrupted at step 2 of 3 of stage distillation: why"),
        ("SIGTERMException", "terminated at step 2 of 3 of stage distillation: why"),
    ],
)
def test_how_a_run_ended_is_one_line(tmp_path: Path, kind: str, headline: str) -> None:
    replace(FAILURE, kind=kind).write(tmp_path)
    assert how_it_ended(tmp_path) == headline


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"message": "killed, or\\nout of memory"}', "killed, or out of memory"),
        ("{", "killed, or still running"),
        ("[]", "killed, or still running"),
        ("{}", "killed, or still running"),
    ],
)
def test_a_job_of_a_sweep_is_believed_where_its_run_says_nothing(
    tmp_path: Path, text: str, told: str
) -> None:
    (tmp_path / "job_failure.json").write_text(text)
    assert how_it_ended(tmp_path) == told
    FAILURE.write(tmp_path)
    assert "stage distillation" in how_it_ended(tmp_path)


@pytest.mark.parametrize("text", ["{", json.dumps({"stage": "x"}), "[]", "1"])
def test_a_damaged_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / FAILURE_FILE).write_text(text)
    with pytest.raises(ValueError, match=r"."):
        read_failure(tmp_path)
