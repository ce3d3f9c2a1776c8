"""What a run promises when the surroundings fail: disk, secrets, memory, pre-emption."""

from __future__ import annotations

import errno
import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from hast_lightning.records.folder import GRID_FILE, REPORT_FILE, RESULT_FILE
from hast_lightning.runs import assembly, pipeline
from hast_lightning.training.callbacks import checkpoint as checkpoint_module
from hast_lightning.training.callbacks.checkpoint import LastCheckpoint
from hast_lightning.training.module import ZeroShotQuantization
from tests.command_line import SYNTHESIS_STEPS, TINY, call, content
from tests.composition import composed

SECRET = "a-key-that-nobody-must-see"


@pytest.mark.parametrize(
    ("logger", "exported"),
    [
        ("csv", {".safetensors"}),
        pytest.param("tensorboard", {".safetensors", ".onnx", ".pt2"}, marks=pytest.mark.slow),
        pytest.param("wandb", {".safetensors"}, marks=pytest.mark.slow),
    ],
)
def test_no_secret_of_the_environment_reaches_a_file_or_the_screen(
    logger: str, exported: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("WANDB_MODE", "offline")
    export = "packed" if len(exported) == 1 else "all"
    arguments = (*TINY, f"logger={logger}", f"export={export}", "hydra.run.dir=run")
    finished = call(*arguments, folder=tmp_path)
    assert finished.status == 0, finished
    if logger == "wandb":
        assert list((tmp_path / "run").rglob("*.wandb"))
    files = content(tmp_path)
    assert len(files) >= 6
    assert {Path(name).suffix for name in files} >= exported
    # Archives of torch store without compressing, so a text in them is seen as it is.
    assert [name for name, data in files.items() if SECRET.encode() in data] == []
    assert SECRET not in finished.out + finished.err


def test_a_full_disk_ends_in_one_line_and_keeps_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush, calls = checkpoint_module._flush, []

    def full_after_the_first(path: Path) -> None:
        calls.append(path)
        if len(calls) > 2:  # a checkpoint flushes its file and its folder
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(path)

    monkeypatch.setattr(checkpoint_module, "_flush", full_after_the_first)
    arguments = (*TINY, "callbacks.checkpoint_every_n_steps=2", "hydra.run.dir=run")
    refusal = call(*arguments, folder=tmp_path).refusal()
    assert "could not be written" in refusal
    assert "No space left on device" in refusal
    saved = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert saved["iteration"] == 2
    monkeypatch.undo()
    assert call("resume=run", folder=tmp_path).status == 0


def test_a_disk_that_is_full_elsewhere_is_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pipeline, "claim", full)
    refusal = call(*TINY, "hydra.run.dir=run", folder=tmp_path).refusal()
    assert "No space left on device" in refusal


def test_a_requeued_job_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, saved = LastCheckpoint.save, []

    def preempted(self: LastCheckpoint, trainer: Any) -> None:
        save(self, trainer)
        saved.append(trainer)
        if len(saved) == 2:
            # What the plugin leaves when the signal comes in the middle of a step.
            trainer.save_checkpoint(self.path.with_name("hpc_ckpt_1.ckpt"))
            raise KeyboardInterrupt

    monkeypatch.setattr(LastCheckpoint, "save", preempted)
    arguments = (*TINY, "callbacks.checkpoint_every_n_steps=2", "hydra.run.dir=run")
    assert call(*arguments, folder=tmp_path).status == 130
    monkeypatch.undo()
    assert "already holds a run" in call(*arguments, folder=tmp_path).refusal()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert call(*arguments, folder=tmp_path).status == 0
    result = json.loads((tmp_path / "run" / RESULT_FILE).read_text())
    assert (result["resumes"], result["synthesis_steps"]) == (1, SYNTHESIS_STEPS)
    assert not list((tmp_path / "run").glob("hpc*"))


def test_the_disk_use_of_a_run_is_reported_and_bounded(tmp_path: Path) -> None:
    arguments = (*TINY, "callbacks.checkpoint_every_n_steps=1", "hydra.run.dir=run")
    assert call(*arguments, folder=tmp_path).status == 0
    run = tmp_path / "run"
    assert len(list(run.glob("*.ckpt"))) == 2
    reported = json.loads((run / RESULT_FILE).read_text())["disk_bytes"]
    later = sum(
        (run / name).stat().st_size
        for name in (RESULT_FILE, GRID_FILE, REPORT_FILE, "student.safetensors")
    )
    assert reported == sum(len(data) for data in content(run).values()) - later


def tiny_module(*overrides: str) -> ZeroShotQuantization:
    prepared = assembly.build(
        composed(*TINY, *overrides), Path(), pipeline.Origin("test", None, {})
    )
    return prepared.module


def gradients(module: ZeroShotQuantization, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The student's gradients of one step, on images that depend on the seed alone."""
    torch.manual_seed(1)
    images, labels = torch.randn(8, 1, 8, 8), torch.randint(10, (8,))
    optimizer = torch.optim.SGD(module.student.parameters(), lr=0.0)
    monkeypatch.setattr(module, "manual_backward", lambda loss: loss.backward())
    module._accumulate(images, labels, optimizer)  # type: ignore[arg-type]
    return [p.grad.clone() for p in module.student.parameters() if p.grad is not None]


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_accumulated_gradients_are_those_of_the_whole_batch(
    micro_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gradients(calibrated(tiny_module()), monkeypatch)
    module = calibrated(tiny_module(f"trainer.micro_batch={micro_batch}"))
    parts = gradients(module, monkeypatch)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max() + 1))


def calibrated(module: ZeroShotQuantization) -> ZeroShotQuantization:
    from hast_lightning.quantization.fake_quant import (
        ActivationMode,
        freeze_ranges,
        set_activation_mode,
    )

    torch.manual_seed(2)
    set_activation_mode(module.student, ActivationMode.OBSERVE)
    with torch.no_grad():
        module.student(torch.randn(16, 1, 8, 8))
    freeze_ranges(module.student)
    return module


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_once = calibrated(tiny_module())
    whole = gradients(at_once, monkeypatch)
    module = calibrated(tiny_module("trainer.halve_on_out_of_memory=true"))
    forward, passes = module.teacher.features, iter(range(100))

    def limited(images: torch.Tensor) -> Any:
        # Not in the first pass, which has measured something by then.
        if next(passes) > 0 and len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(images)

    monkeypatch.setattr(module.teacher, "features", limited)
    parts = gradients(module, monkeypatch)
    assert module.micro_batch == 2
    assert module.scalars.keys() == at_once.scalars.keys()
    for name, value in at_once.scalars.items():
        assert float(module.scalars[name]) == pytest.approx(float(value), rel=1e-3), name
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max() + 1))


@pytest.mark.parametrize(
    ("place", "stage", "lower"),
    [
        ("statistics", "synthesis", "synthesis.bank.batch_size"),
        ("features", "distillation", "trainer.micro_batch"),
    ],
)
def test_out_of_memory_says_what_to_lower(
    place: str, stage: str, lower: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hast_lightning.models.teacher import FrozenTeacher

    def exhausted(self: FrozenTeacher, images: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(FrozenTeacher, place, exhausted)
    refusal = call(*TINY, "data=none", "run=[synthesize,distill]", folder=tmp_path).refusal()
    assert "out of memory at step 1 of" in refusal
    assert f"stage {stage}" in refusal
    assert refusal.endswith(f"lower {lower}")


def test_a_long_gradient_is_clipped(tmp_path: Path) -> None:
    clip = ("distillation.optimizer.clip_norm=1e-3", "trainer.log_every_n_steps=1")
    assert call(*TINY, *clip, "hydra.run.dir=run", folder=tmp_path).status == 0
    header, *rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    column = header.split(",").index("distillation/gradient_norm")
    norms = [float(row.split(",")[column]) for row in rows if row.split(",")[column]]
    assert len(norms) == 3
    assert min(norms) > 1e-3  # as it was before


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_is_flat_over_two_thousand_steps(tmp_path: Path) -> None:
    peaks: list[int] = []
    step = ZeroShotQuantization.training_step

    def measured(self: ZeroShotQuantization, batch: Any, batch_idx: int) -> None:
        step(self, batch, batch_idx)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ZeroShotQuantization, "training_step", measured)
        arguments = (
            *TINY,
            "schedule=alternating_quick",
            "schedule.calibration_steps=20",
            "schedule.student_steps=2000",
            "synthesis=generator",
            "synthesis.generator.batch_size=8",
        )
        assert call(*arguments, "hydra.run.dir=run", folder=tmp_path).status == 0
    assert len(peaks) == 2020
    # The peak resident set in KiB: what allocators and caches take, they take in the beginning.
    assert peaks[-1] - peaks[500] < 20 * 1024
