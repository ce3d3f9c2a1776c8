"""What a run that came to no end says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hast_lightning.records.failure import FAILURE_FILE, Failure, read_failure
from hast_lightning.training.callbacks.checkpoint import LastCheckpoint
from hast_lightning.training.module import ZeroShotQuantization
from tests.command_line import SYNTHESIS_STEPS, TINY, call

FAILURE = Failure("distillation", 2, 3, 9, "why", "DivergenceError", "last.ckpt", 0)


def test_a_diverged_run_says_where_and_keeps_the_last_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = ZeroShotQuantization._distill

    def diverge(self: ZeroShotQuantization, proposal: Any) -> None:
        if self.iteration == SYNTHESIS_STEPS + 2 + 1:  # the second student step
            with torch.no_grad():
                next(self.student.parameters()).fill_(float("nan"))
        step(self, proposal)

    monkeypatch.setattr(ZeroShotQuantization, "_distill", diverge)
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


@pytest.mark.parametrize("text", ["{", json.dumps({"stage": "x"}), "[]", "1"])
def test_a_damaged_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / FAILURE_FILE).write_text(text)
    with pytest.raises(ValueError, match=r"."):
        read_failure(tmp_path)
