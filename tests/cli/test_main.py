"""What the command line does with what it accepts; refusals are in test_bad_input.py."""

from __future__ import annotations

import csv
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from hast_lightning import __version__
from hast_lightning.cli import main as cli
from hast_lightning.cli import start
from hast_lightning.errors import ConfigurationError
from hast_lightning.files.tensors import read_tensors
from hast_lightning.records.result import Result
from hast_lightning.runs import pipeline
from hast_lightning.training.module import ZeroShotQuantization
from tests.command_line import (
    CALIBRATION_STEPS,
    STUDENT_STEPS,
    SYNTHESIS_STEPS,
    TINY,
    Finished,
    call,
    content,
)

RUN_FILES = {
    "config.yaml",
    "origin.json",
    "metrics.csv",
    "last.ckpt",
    # Of the end of the stage before.
    "last.1.ckpt",
    "samples.safetensors",
    "samples.png",
    "student.safetensors",
    "MODEL_CARD.md",
    "report.html",
    "result.json",
}
RANDOM_NETWORK = ("model.pretrained=false", "data=none")


@dataclass(frozen=True)
class Called:
    """A command, the folder that it was given in, and what its jobs returned to Hydra."""

    finished: Finished
    folder: Path
    objectives: list[float | None]


def recorded(folder: Path, *arguments: str) -> Called:
    objectives: list[float | None] = []
    run_job = cli.run_job

    def job(composed: Any) -> float | None:
        objectives.append(run_job(composed))
        return objectives[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "run_job", job)
        return Called(call(*TINY, *arguments, folder=folder), folder, objectives)


def only_child(folder: Path) -> Path:
    (child,) = folder.iterdir()
    return child


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- one run ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Called:
    """The command without anything but a small budget."""
    return recorded(tmp_path_factory.mktemp("default"))


@pytest.fixture
def default_run(default: Called) -> Path:
    return only_child(default.folder / "outputs" / "hast_digits_resnet_w3a3")


def test_a_run_succeeds_and_leaves_its_files_in_a_folder_of_its_own(
    default: Called, default_run: Path
) -> None:
    assert default.finished.status == 0
    assert default.finished.err == ""
    assert files(default_run) == RUN_FILES
    assert files(default.folder) == {"outputs"}


def test_the_result_holds_the_numbers_of_the_run(default_run: Path) -> None:
    result = Result.read(default_run / "result.json")
    assert (result.recipe, result.seed, result.status) == ("hast_digits_resnet_w3a3", 0, "complete")
    assert (result.weight_bits, result.activation_bits) == (3, 3)
    assert (result.method, result.budget) == ("hast", "demo")
    assert result.steps_by_stage == {
        "synthesis": SYNTHESIS_STEPS,
        "calibration": CALIBRATION_STEPS,
        "distillation": STUDENT_STEPS,
    }
    assert result.student_steps == STUDENT_STEPS
    assert result.evaluated_images == 599
    assert result.teacher_top1 is not None
    assert result.teacher_top1 > 95
    assert shlex.split(result.command) == ["python", "-m", "hast_lightning", *TINY]


def test_the_table_shows_the_result(default: Called, default_run: Path) -> None:
    result = Result.read(default_run / "result.json")
    rows = default.finished.out.splitlines()
    (teacher,) = (row for row in rows if "full precision" in row)
    (student,) = (row for row in rows if "calibrated and trained" in row)
    assert f"{result.teacher_top1:.2f}" in teacher
    assert f"{result.quantized_top1:.2f}" in student
    assert f"{result.teacher_agreement:.2f}" in student
    assert rows[-1] == f"Everything is in {default_run}"


def test_every_step_is_in_the_metrics(default_run: Path) -> None:
    with (default_run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    synthesized = [row for row in rows if row["synthesis/bns"]]
    distilled = [row for row in rows if row["distillation/kd"]]
    assert len(synthesized) == SYNTHESIS_STEPS
    assert len(distilled) == STUDENT_STEPS
    assert int(distilled[-1]["step"]) == SYNTHESIS_STEPS + CALIBRATION_STEPS + STUDENT_STEPS - 1


def test_checkpoint_samples_and_picture_can_be_read(default_run: Path) -> None:
    checkpoint = torch.load(default_run / "last.ckpt", weights_only=True)
    assert checkpoint["iteration"] == SYNTHESIS_STEPS + CALIBRATION_STEPS + STUDENT_STEPS
    samples, _ = read_tensors(default_run / "samples.safetensors", "image-bank")
    assert samples["images"].shape == (64, 1, 8, 8)
    with Image.open(default_run / "samples.png") as picture:
        picture.verify()


def test_a_sweeper_is_given_the_top_1_accuracy(default: Called, default_run: Path) -> None:
    assert default.objectives == [Result.read(default_run / "result.json").quantized_top1]


def test_without_data_a_sweeper_is_given_the_agreement(tmp_path: Path) -> None:
    called = recorded(tmp_path, "data=none", "hydra.run.dir=here")
    result = Result.read(tmp_path / "here" / "result.json")
    assert (result.teacher_top1, result.calibrated_top1, result.quantized_top1) == (None,) * 3
    assert result.agreement_on == "held-out synthetic images"
    assert result.error_without_labels is not None
    assert called.objectives == [-result.error_without_labels]
    assert "agreement" in called.finished.out
    assert "top-1" not in called.finished.out


def test_own_pictures_take_the_place_of_synthetic_images(tmp_path: Path) -> None:
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    for number in range(20):
        noise = torch.randint(256, (12, 10), dtype=torch.uint8).numpy()
        Image.fromarray(noise).save(tmp_path / "pictures" / "deep" / f"{number}.png")
    mine = ("source@sources.bank=images", "sources.bank.path=pictures", "data=none")
    stages = ("order=[calibration,distillation]", "data.holdout=0.2")
    called = recorded(tmp_path, *mine, *stages, "hydra.run.dir=here")
    assert called.finished.status == 0, called
    # The pictures are nowhere in the folder, but for those in the report.
    assert files(tmp_path / "here") == RUN_FILES - {"samples.safetensors"}
    result = Result.read(tmp_path / "here" / "result.json")
    assert (result.agreement_on, result.evaluated_images) == ("held-out own images", 4)
    assert result.steps_by_stage == {
        "calibration": CALIBRATION_STEPS,
        "distillation": STUDENT_STEPS,
    }


def test_the_order_is_kept_and_the_run_folder_is_the_one_asked_for(tmp_path: Path) -> None:
    only_images = ("order=[synthesis]", "report=false")
    first = recorded(tmp_path, *only_images, "hydra.run.dir=made/here")
    assert first.finished.status == 0, first
    assert first.objectives == [None]
    made = tmp_path / "made" / "here"
    left_out = {"result.json", "student.safetensors", "samples.png", "report.html"}
    assert files(made) == RUN_FILES - left_out - {"last.1.ckpt", "MODEL_CARD.md"}
    before = content(made)
    load = f"sources.bank.load={made / 'samples.safetensors'}"
    rest = ("order=[calibration,distillation]", "report=false", "export=none")
    second = recorded(tmp_path, load, *rest, "hydra.run.dir=used")
    assert (second.finished.status, second.finished.err) == (0, "")
    result = Result.read(tmp_path / "used" / "result.json")
    assert result.steps_by_stage == {
        "calibration": CALIBRATION_STEPS,
        "distillation": STUDENT_STEPS,
    }
    assert files(tmp_path) == {"made", "used"}
    assert content(made) == before


def test_an_experiment_is_chosen_by_name(tmp_path: Path) -> None:
    called = recorded(tmp_path, "+experiment=digits_w2a2", "seed=5")
    run = only_child(tmp_path / "outputs" / "digits_w2a2")
    result = Result.read(run / "result.json")
    assert (result.recipe, result.weight_bits, result.seed) == ("digits_w2a2", 2, 5)
    assert "digits_w2a2, seed 5" in called.finished.out


def test_tensorboard_is_chosen_by_name_and_metrics_are_written_all_the_same(
    tmp_path: Path,
) -> None:
    pytest.importorskip("tensorboard")
    called = recorded(tmp_path, "logger=tensorboard", *RANDOM_NETWORK, "hydra.run.dir=here")
    assert called.finished.status == 0, called
    assert files(tmp_path / "here") == RUN_FILES | {"tensorboard"}
    assert any("tfevents" in name for name in files(tmp_path / "here" / "tensorboard"))


# --- sweeps ----------------------------------------------------------------------------------


def test_a_sweep_runs_every_combination_in_a_folder_of_its_own(tmp_path: Path) -> None:
    bits = ("quantizer.weight_bits=choice(2)", "quantizer.activation_bits=2,4")
    called = recorded(tmp_path, "-m", *RANDOM_NETWORK, *bits)
    assert called.finished.status == 0, called
    assert called.finished.err == ""
    sweep = only_child(tmp_path / "multirun" / "hast_digits_resnet_w3a3")
    assert files(sweep) == {"0", "1", "multirun.yaml"}
    jobs = [sweep / "0", sweep / "1"]
    assert all(files(job) == RUN_FILES for job in jobs)
    # Loggers show them together, under the name of the sweep's folder.
    loggers = [OmegaConf.load(job / "config.yaml").logger for job in jobs]
    assert {logger.group for logger in loggers} == {f"hast_digits_resnet_w3a3/{sweep.name}"}
    combinations = [
        [f"quantizer.weight_bits={weight}", f"quantizer.activation_bits={activation}"]
        for weight, activation in ((2, 2), (2, 4))
    ]
    assert [list(logger.tags) for logger in loggers] == [["sweep", *own] for own in combinations]
    assert loggers[1].run_name == f"hast_digits_resnet_w2a4/1 {' '.join(combinations[1])}"
    results = [Result.read(job / "result.json") for job in jobs]
    widths = [(result.weight_bits, result.activation_bits) for result in results]
    assert widths == [(2, 2), (2, 4)]
    errors = [result.error_without_labels for result in results]
    assert called.objectives == [None if error is None else -error for error in errors]
    for (weight, activation), result in zip(widths, results, strict=True):
        own = [f"quantizer.weight_bits={weight}", f"quantizer.activation_bits={activation}"]
        words = shlex.split(result.command)
        assert words[:3] == ["python", "-m", "hast_lightning"]
        # Hydra spells a sweep's values its own way: False, for one.
        assert {word.lower() for word in words[3:]} == {*TINY, *RANDOM_NETWORK, *own}


def test_the_command_of_a_job_makes_its_result_again(tmp_path: Path) -> None:
    recorded(tmp_path, "--multirun", *RANDOM_NETWORK, "seed=3,4", "hydra.sweep.dir=sweep")
    swept = Result.read(tmp_path / "sweep" / "1" / "result.json")
    words = shlex.split(swept.command)[3:]
    assert call(*words, "hydra.run.dir=again", folder=tmp_path).status == 0
    again = Result.read(tmp_path / "again" / "result.json")
    assert (again.seed, again.model_checksum) == (4, swept.model_checksum)
    metrics = [tmp_path / run / "metrics.csv" for run in ("sweep/1", "again")]
    assert metrics[0].read_bytes() == metrics[1].read_bytes()


def test_a_sweep_goes_on_behind_jobs_that_diverge_or_are_refused(tmp_path: Path) -> None:
    rates = "stages.distillation.optimizer.lr=1e30,1e-3,-1"
    sgd = "stages.distillation.optimizer.name=sgd"
    called = recorded(tmp_path, "-m", *RANDOM_NETWORK, sgd, rates, "hydra.sweep.dir=sweep")
    assert called.finished.status == cli.USER_ERROR_STATUS
    diverged, refused, summary, *failed = called.finished.err.splitlines()
    assert diverged.startswith(
        "hast-lightning: job 0: the distillation loss became nan at step 2 of 3 of stage dist"
    )
    assert refused.startswith(
        "hast-lightning: job 2: stages.distillation.optimizer.lr=-1.0 must be greater than 0"
    )
    assert summary == f"hast-lightning: 2 jobs of the sweep in {tmp_path / 'sweep'} failed:"
    assert [line.split()[:2] for line in failed] == [["job", "0"], ["job", "2"]]
    assert "Traceback" not in called.finished.out
    jobs = [tmp_path / "sweep" / str(number) for number in range(3)]
    assert files(jobs[1]) == RUN_FILES
    assert Result.read(jobs[1] / "result.json").status == "complete"
    assert "job_failure.json" in files(jobs[0])
    assert "result.json" not in files(jobs[0])
    assert files(jobs[2]) == {"job_failure.json"}


# --- the end of a process --------------------------------------------------------------------


def test_the_stack_trace_is_there_for_who_asks(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"quantizer\.weight_bits=9 must be"):
        call("quantizer.weight_bits=9", folder=tmp_path, full_error="1")
    with pytest.raises(cli.HydraException, match=r"quantizer\.wait_bits"):
        call("quantizer.wait_bits=2", folder=tmp_path, full_error="1")
    with pytest.raises(ConfigurationError, match=r"quantizer\.weight_bits=9 must be"):
        call("-m", "quantizer.weight_bits=9,0", folder=tmp_path, full_error="1")
    for switched_off in ("", "0"):
        finished = call("quantizer.weight_bits=9", folder=tmp_path, full_error=switched_off)
        assert "must be at least 1" in finished.refusal()


def test_a_second_run_in_one_process_is_refused_in_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As studies do, which go through many runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["hast-lightning", "quantizer.weight_bits=9"])
    for name in (cli.FULL_ERROR, cli.NOT_ASKED):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("kind", [ValueError, OSError, RuntimeError])
def test_a_defect_keeps_its_stack_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def defective(*_: object) -> None:
        raise kind("of this package")

    monkeypatch.setattr(pipeline, "run", defective)
    with pytest.raises(kind, match="of this package"):
        call("seed=1", folder=tmp_path)
    finished = call("-m", "seed=1,2", "hydra.sweep.dir=sweep", folder=tmp_path)
    assert finished.status == cli.DEFECT_STATUS
    assert finished.err.count("Traceback") == 2
    assert "2 jobs of the sweep" in finished.err
    assert "of this package" in (tmp_path / "sweep" / "1" / "job_failure.json").read_text()


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> int:
    """Every run is interrupted in the first student step; returns the iterations before it."""
    step = ZeroShotQuantization.training_step
    done = SYNTHESIS_STEPS + CALIBRATION_STEPS

    def interrupted_step(module: ZeroShotQuantization, batch: Any, batch_idx: int) -> None:
        if module.iteration == done:
            raise KeyboardInterrupt
        step(module, batch, batch_idx)

    monkeypatch.setattr(ZeroShotQuantization, "training_step", interrupted_step)
    return done


def test_an_interrupt_ends_in_its_own_status_and_keeps_what_was_saved(
    tmp_path: Path, interrupted: int
) -> None:
    every_step = "callbacks.checkpoint_every_n_steps=1"
    finished = call(*TINY, every_step, "hydra.run.dir=here", folder=tmp_path)
    assert finished.status == cli.INTERRUPTED_STATUS == 130
    assert finished.err.splitlines()[-1] == (
        "hast-lightning: interrupted; the run is in here and goes on with: python -m "
        "hast_lightning resume=here"
    )
    assert "Traceback" not in finished.err
    run = tmp_path / "here"
    assert torch.load(run / "last.ckpt", weights_only=True)["iteration"] == interrupted
    assert (run / "samples.safetensors").exists()
    assert not (run / "result.json").exists()


def test_an_interrupt_ends_a_whole_sweep(tmp_path: Path, interrupted: int) -> None:
    assert interrupted
    finished = call("-m", *TINY, "seed=1,2", "hydra.sweep.dir=sweep", folder=tmp_path)
    assert finished.status == cli.INTERRUPTED_STATUS
    assert (tmp_path / "sweep" / "0" / "metrics.csv").exists()
    assert not (tmp_path / "sweep" / "1").exists()


def test_the_console_script_is_this_entry_point() -> None:
    (script,) = entry_points(group="console_scripts", name="hast-lightning")
    assert script.load() is start.main


@pytest.mark.parametrize("flags", [("--help", "keys"), ("--cfg", "job")])
def test_asking_what_there_is_starts_nothing(tmp_path: Path, flags: tuple[str, ...]) -> None:
    finished = call(*flags, folder=tmp_path)
    assert finished.status == 0
    assert finished.err == ""
    assert "weight_bits: 3" in finished.out
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_the_packages_own(tmp_path: Path) -> None:
    finished = call("--version", folder=tmp_path)
    assert (finished.status, finished.out) == (0, f"hast-lightning {__version__}\n")
    assert call("seed=1", "--version", folder=tmp_path) == finished


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (
            type("TerminatedWorkerError", (Exception,), {})("a\nb"),
            1,
            "was killed, perhaps",
        ),
        (
            type("UncompletedJobError", (Exception,), {})("a\nb"),
            1,
            "the others go on by themselves",
        ),
        (
            RuntimeError('Could not detect "srun", are you on a cluster?'),
            2,
            "submitit_slurm: ",
        ),
    ],
)
def test_what_a_launcher_cannot_do_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, line: str
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "_list_failures", list)
    monkeypatch.setattr(cli.hydra, "main", lambda **_: lambda job: lambda: fail(job))
    finished = call(folder=tmp_path)
    assert finished.status == status
    assert line in finished.err
    assert len(finished.err.splitlines()) == 1


def test_whoever_reads_only_the_first_lines_sees_no_complaint(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hast_lightning", "--help"]
    reading, writing = os.pipe()
    os.close(reading)  # before a word is written
    finished = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, cwd=tmp_path)
    os.close(writing)
    assert (finished.returncode, finished.stderr) == (cli.BROKEN_PIPE_STATUS, b"")
