"""What a run promises when the surroundings fail: disk, secrets, memory, pre-emption."""

from __future__ import annotations

import errno
import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from hast_lightning.core.batch import Batch
from hast_lightning.core.stage import Bench, Outcome, Stage
from hast_lightning.errors import MemoryLimitError
from hast_lightning.records.folder import GRID_FILE, REPORT_FILE, RESULT_FILE
from hast_lightning.runs import pipeline
from hast_lightning.runs.model_card import CARD_FILE
from hast_lightning.stages.calibrate import Calibrate
from hast_lightning.stages.distill import Distill
from hast_lightning.stages.synthesize import Synthesize
from hast_lightning.training.callbacks import checkpoint as checkpoint_module
from hast_lightning.training.callbacks.checkpoint import LastCheckpoint
from hast_lightning.training.module import ZeroShotQuantization
from tests.command_line import SYNTHESIS_STEPS, TINY, call, content, undisturbed_torch
from tests.small_runs import OWN_CALIBRATION, build_module, fit, small

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
    assert (result["resumes"], result["steps_by_stage"]["synthesis"]) == (1, SYNTHESIS_STEPS)
    assert not list((tmp_path / "run").glob("hpc*"))


def test_the_disk_use_of_a_run_is_reported_and_bounded(tmp_path: Path) -> None:
    arguments = (*TINY, "callbacks.checkpoint_every_n_steps=1", "hydra.run.dir=run")
    assert call(*arguments, folder=tmp_path).status == 0
    run = tmp_path / "run"
    assert len(list(run.glob("*.ckpt"))) == 2
    reported = json.loads((run / RESULT_FILE).read_text())["disk_bytes"]
    later = sum(
        (run / name).stat().st_size
        for name in (RESULT_FILE, GRID_FILE, REPORT_FILE, CARD_FILE, "student.safetensors")
    )
    assert reported == sum(len(data) for data in content(run).values()) - later


class OneStep(Callback):
    """Keeps the student's gradients and what was measured in the only student step."""

    gradients: list[torch.Tensor]
    outcome: Outcome

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, ZeroShotQuantization)
        self.outcome = pl_module.outcome
        gradients = [p.grad for p in pl_module.student.parameters()]
        self.gradients = [gradient.clone() for gradient in gradients if gradient is not None]


def one_step(*overrides: str, prepare: Any = None) -> tuple[ZeroShotQuantization, OneStep]:
    """Train the student for a step; the images are the same however they pass."""
    module = build_module(
        small(*OWN_CALIBRATION, "schedule.student_steps=1", "schedule.student_batch=8", *overrides)
    )
    if prepare is not None:
        prepare(module)
    step = OneStep()
    with undisturbed_torch():
        fit(module, [step])
    return module, step


def assert_alike(one: OneStep, other: OneStep) -> None:
    """The same gradients and scalars, but for the order of additions."""
    for left, right in zip(one.gradients, other.gradients, strict=True):
        tolerance = 1e-4 * float(left.abs().max() + 1)
        torch.testing.assert_close(left, right, rtol=1e-3, atol=tolerance)
    assert one.outcome.scalars.keys() == other.outcome.scalars.keys()
    for name, value in one.outcome.scalars.items():
        assert float(other.outcome.scalars[name]) == pytest.approx(float(value), rel=1e-3), name


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_accumulated_gradients_are_those_of_the_whole_batch(micro_batch: int) -> None:
    _, whole = one_step()
    _, parts = one_step(f"trainer.micro_batch={micro_batch}")
    assert len(parts.outcome.answers[""]) == -(-8 // micro_batch)
    assert_alike(whole, parts)


def test_samples_with_weights_are_accumulated_by_their_weights() -> None:
    def weigh(module: ZeroShotQuantization) -> None:
        sample = module.source.sample

        def weighted(count: int) -> Batch:
            return sample(count)._replace(weights=torch.arange(count) / count)

        module.source.sample = weighted  # type: ignore[method-assign]

    _, unweighted = one_step()
    _, whole = one_step(prepare=weigh)
    _, parts = one_step("trainer.micro_batch=3", prepare=weigh)
    assert_alike(whole, parts)
    assert whole.outcome.scalars["distillation/kd"] != unweighted.outcome.scalars["distillation/kd"]


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing() -> None:
    def limit(module: ZeroShotQuantization) -> None:
        trace, passes = module.teacher.trace, iter(range(100))

        def limited(images: torch.Tensor, nodes: Any = (), *, unfolded: bool = False) -> Any:
            # Not in the first pass of the student step, which has measured something by then.
            if not unfolded and next(passes) > 0 and len(images) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return trace(images, nodes, unfolded=unfolded)

        module.teacher.trace = limited  # type: ignore[method-assign]

    _, whole = one_step()
    module, parts = one_step("trainer.halve_on_out_of_memory=true", prepare=limit)
    assert module.micro_batch == 2
    assert_alike(whole, parts)


@pytest.mark.parametrize(
    ("stage", "words", "message"),
    [
        ("synthesis", (), "with 32 images at once: lower sources.bank.batch_size"),
        ("calibration", (), "with 16 images at once: lower sources.calibration.batch_size"),
        (
            "calibration",
            OWN_CALIBRATION,
            "with 16 images at once: lower stages.calibration.batch_size",
        ),
        ("distillation", (), "with 8 images at once: lower trainer.micro_batch"),
        (
            "distillation",
            ("trainer.micro_batch=4",),
            "with 4 images at once: lower trainer.micro_batch",
        ),
    ],
)
def test_out_of_memory_says_what_to_lower(
    stage: str,
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def exhaust(self: Stage, bench: Bench) -> None:
        if self.name == stage:
            monkeypatch.setattr(type(bench.teacher), "trace", exhausted)
            bench.student.register_forward_pre_hook(exhausted)

    for kind in (Synthesize, Calibrate, Distill):
        monkeypatch.setattr(kind, "begin", exhaust)
    refusal = call(*TINY, *words, "data=none", folder=tmp_path).refusal()
    assert "out of memory at step 1 of " in refusal
    assert f"of stage {stage} {message}" in refusal


@pytest.mark.parametrize(
    ("network", "lower"),
    [("teacher", "sources.generator.batch_size"), ("student", "trainer.micro_batch")],
)
def test_out_of_memory_in_an_alternating_step_says_which_of_the_two_it_was(
    network: str, lower: str
) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    class Exhausted(Callback):
        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, *_: Any
        ) -> None:
            assert isinstance(pl_module, ZeroShotQuantization)
            if pl_module.iteration == 2:  # the first behind the calibration
                getattr(
                    pl_module, {"teacher": "teacher", "student": "learner"}[network]
                ).trace = exhausted

    module = build_module(small("method=hast_alternating"))
    with pytest.raises(MemoryLimitError, match=rf"stage alternation with 8 .* lower {lower}$"):
        fit(module, [Exhausted()])


def test_a_long_gradient_is_clipped(tmp_path: Path) -> None:
    clip = ("stages.distillation.optimizer.clip_norm=1e-3", "trainer.log_every_n_steps=1")
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
            "method=hast_alternating",
            "schedule.calibration_steps=20",
            "schedule.student_steps=2000",
        )
        assert call(*arguments, "hydra.run.dir=run", folder=tmp_path).status == 0
    assert len(peaks) == 2020
    # The peak resident set in KiB: what allocators and caches take, they take in the beginning.
    assert peaks[-1] - peaks[500] < 20 * 1024
