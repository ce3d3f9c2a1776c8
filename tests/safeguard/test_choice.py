"""A run hands back the student of the stage after which it was closest to the teacher."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from hast_lightning.cli import main as cli
from hast_lightning.config.safeguard import deciding_error
from hast_lightning.records.result import Result
from hast_lightning.safeguard.choice import Choice, errors_of, preferred
from hast_lightning.safeguard.closeness import Closeness
from hast_lightning.safeguard.states import PATTERN, StudentStates, kept_states, worse_than_noise
from tests.command_line import TINY, call
from tests.small_runs import build_module, fit, small

RUINED = (
    *TINY,
    "data=digits",
    "safeguard.images=32",
    "safeguard.iterations=20",
    "schedule.student_steps=6",
    "stages.distillation.optimizer.lr=0.3",
    "hydra.run.dir=run",
)


def judged(**errors: float) -> dict[str, dict[str, Closeness]]:
    """Errors on reference images alone."""
    return {stage: {"reference": Closeness(error, 50.0)} for stage, error in errors.items()}


@pytest.mark.parametrize(
    ("errors", "chosen"),
    [
        ({"calibration": 0.3, "distillation": 0.2}, "distillation"),
        ({"calibration": 0.2, "distillation": 0.3}, "calibration"),
        # What is within the tolerance is no reason to throw training away.
        ({"calibration": 0.19, "distillation": 0.2}, "distillation"),
        ({"calibration": 0.3, "correction": 0.1, "distillation": 0.2}, "correction"),
        ({"calibration": 0.3, "distillation": float("inf")}, "calibration"),
        ({"calibration": float("inf"), "distillation": float("inf")}, "distillation"),
    ],
)
def test_the_smallest_error_is_preferred(errors: dict[str, float], chosen: str) -> None:
    assert preferred(errors, 0.1) == chosen


def both(**errors: tuple[float, float]) -> dict[str, dict[str, Closeness]]:
    kinds = ("reference", "leaves")
    return {
        stage: {kind: Closeness(error, 50.0) for kind, error in zip(kinds, found, strict=True)}
        for stage, found in errors.items()
    }


@pytest.mark.parametrize(
    ("errors", "chosen"),
    [
        # A correction behind training fits the reference images better and photographs worse.
        ({"distillation": (0.58, 0.2), "correction": (0.43, 0.4)}, "distillation"),
        ({"distillation": (0.58, 0.4), "correction": (0.43, 0.4)}, "correction"),
        # Units that were rebuilt on leaves fit these alone.
        ({"correction": (0.2, 0.5), "reconstruction": (0.5, 0.4)}, "correction"),
        ({"correction": (0.0, 0.8), "reconstruction": (0.5, 0.4)}, "correction"),
    ],
)
def test_both_kinds_of_images_count(errors: dict[str, tuple[float, float]], chosen: str) -> None:
    assert preferred(errors_of(both(**errors)), 0.05) == chosen


def test_the_error_is_the_geometric_mean_of_both_where_leaves_count_twice() -> None:
    found = {"reference": 0.1, "leaves": 0.8}
    assert deciding_error(found) == pytest.approx(0.4)
    assert deciding_error({"reference": 0.1}) == pytest.approx(0.1)
    assert deciding_error({**found, "noise": 9.0, "held_out": 9.0}) == pytest.approx(0.4)


def test_the_warning_has_the_errors_that_chose() -> None:
    judged = both(calibration=(0.1, 0.8), distillation=(0.3, 2.4))
    assert (
        "error of its logits went from 0.4 to 1.2; handed back" in Choice(*judged, judged).warning
    )


def test_the_warning_says_agreement_where_that_fell() -> None:
    for after, said in ((40.0, True), (60.0, False)):
        judged = {
            "calibration": {"reference": Closeness(0.1, 50.0)},
            "distillation": {"reference": Closeness(0.3, after)},
        }
        line = Choice(*judged, judged).warning
        assert ("its agreement with the full-precision network from 50.0 to 40.0 %" in line) == said
        assert ("agreement" in line) == said


def test_the_warning_says_what_happened_and_which_keys_help() -> None:
    choice = Choice("calibration", "distillation", judged(calibration=0.1, distillation=0.9))
    assert "\n" not in choice.warning
    for word in ("distillation", "calibration", "0.1", "0.9", "schedule.image_steps"):
        assert word in choice.warning
    assert Choice("distillation", "distillation").warning == ""


def test_samples_worse_than_noise_are_named() -> None:
    line = worse_than_noise({"bank": 1.78, "noise": 0.16})
    assert "sources.bank" in line
    assert "1.78 against 0.16" in line
    assert "schedule.image_steps" in line
    assert worse_than_noise({"bank": 0.01, "noise": 0.16}) == ""


def test_students_are_kept_behind_every_stage_but_the_last(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = build_module(small())
    states = StudentStates(tmp_path, 8)
    caplog.set_level(logging.WARNING)
    after: dict[str, dict[str, Any]] = {}

    class Watch(StudentStates):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any, **_: Any) -> None:
            stage, step, total = pl_module.progress
            if step == total:
                copied = {k: v.clone() for k, v in pl_module.student.state_dict().items()}
                after[stage] = copied

    fit(module, [states, Watch(tmp_path, 8)])
    files = kept_states(tmp_path, module.agenda.stages)
    assert list(files) == ["calibration"]
    saved = torch.load(files["calibration"], weights_only=True)
    assert all(torch.equal(saved[key], value) for key, value in after["calibration"].items())
    assert set(states.statistics) == {"bank", "calibration", "noise"}
    # Both are worse after so few steps, but no student learns from the one that calibrates.
    assert states.statistics["calibration"] > states.statistics["noise"]
    assert "sources.bank match" in caplog.text
    assert "sources.calibration match" not in caplog.text


def test_training_that_ruins_a_network_is_not_handed_back(tmp_path: Path) -> None:
    finished = call(*RUINED, folder=tmp_path)
    assert finished.status == 0, finished
    result = Result.read(tmp_path / "run" / "result.json")
    assert result.quantized_top1 is not None
    assert result.kept_stage == "calibration"
    assert result.kept_top1 == result.calibrated_top1
    assert result.kept_top1 > result.quantized_top1
    assert finished.out.count("stage distillation made the student worse") == 1
    assert "handed back" in finished.out
    # The exported file is of that student.
    record = result.exports["packed"]
    assert record["agreement"] == 100
    predicted = call(
        "command=predict",
        f"artifact={tmp_path / 'run' / record['file']}",
        f"images={tmp_path / 'run' / 'samples.png'}",
        folder=tmp_path,
    )
    assert predicted.status == 0, predicted
    found = result.judged
    assert set(found) == {"calibration", "distillation"}
    assert found["distillation"]["evaluation"]["top1"] == result.quantized_top1
    assert found["calibration"]["evaluation"]["top1"] == result.kept_top1
    assert not list((tmp_path / "run").glob(PATTERN.format("*")))


def test_without_the_safeguard_the_last_step_is_handed_back(tmp_path: Path) -> None:
    finished = call(*RUINED, "safeguard.enabled=false", folder=tmp_path)
    assert finished.status == 0, finished
    result = Result.read(tmp_path / "run" / "result.json")
    assert result.kept_stage == "distillation"
    assert result.kept_top1 == result.quantized_top1
    assert result.judged == {}


def test_settings_out_of_range_are_refused(tmp_path: Path) -> None:
    for word in ("safeguard.images=1", "safeguard.iterations=-1", "safeguard.tolerance=2"):
        finished = call(word, folder=tmp_path)
        assert finished.status == cli.USER_ERROR_STATUS
        assert word.partition("=")[0] in finished.refusal()
