"""One run on two real processes (gloo, CPU): what they share and what they do not."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hast_lightning.cli import main as cli
from hast_lightning.records.failure import read_failure
from hast_lightning.runs import pipeline
from hast_lightning.runs.assembly import Run
from hast_lightning.runtime.ranks import rank
from tests.command_line import call
from tests.processes import Forked
from tests.small_runs import OWN_CALIBRATION

ARGUMENTS = (
    "trainer.accelerator=cpu",
    "trainer.devices=2",
    "trainer.threads=1",
    "trainer.log_every_n_steps=1",
    "callbacks.progress=false",
    "schedule.images=64",
    "schedule.image_batch=16",
    "schedule.image_steps=3",
    "schedule.calibration_steps=2",
    "schedule.student_steps=3",
    "schedule.student_batch=8",
)

REBUILT = (
    *("method=reconstruct", "quantizer=lsq", "schedule.unit_steps=8"),
    *("stages.correction.samples=16", "stages.reconstruction.samples=16"),
    "stages.reconstruction.batch_size=8",
)


def train_and_keep() -> None:
    """A run, in one of its processes, that leaves what this process has when training is over."""
    fit = pipeline.fit

    def fit_and_keep(run: Run, *rest: Any) -> None:
        fit(run, *rest)
        source = run.module.source
        kept = {
            "student": run.module.student.state_dict(),
            "source": source.state_dict(),
            "active": getattr(source, "active", None),
        }
        torch.save(kept, run.folder.parent / f"rank{rank()}.pt")

    pipeline.fit = fit_and_keep
    cli.main()


def start(
    *command: str, cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def begin(folder: Path, *words: str, become: Callable[[], None] = cli.main) -> list[Forked]:
    """The two processes of a run."""
    return [Forked(folder, *words, environment=rank, become=become) for rank in both_ranks()]


def finish(both: list[Forked]) -> None:
    """Wait for the end of both, which has to be a good one."""
    for process in both:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output


def run_on_two(folder: Path, *arguments: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train on two processes; what each of them has in the end."""
    words = (*ARGUMENTS, *arguments, "hydra.run.dir=run")
    finish(begin(folder, *words, become=train_and_keep))
    first, second = (torch.load(folder / f"rank{rank}.pt") for rank in (0, 1))
    return first, second


def assert_equal(left: dict[str, Any], right: dict[str, Any]) -> None:
    # What each rank observed on its own; the ranges that they froze together are compared.
    common = {key: value for key, value in left.items() if "moving_range" not in key}
    tensors = {key for key, value in common.items() if isinstance(value, torch.Tensor)}
    assert tensors
    assert [key for key in sorted(tensors) if not torch.equal(left[key], right[key])] == []


@pytest.mark.timeout(600)
def test_two_processes_share_the_student_and_the_bank_and_not_the_noise(tmp_path: Path) -> None:
    first, second = run_on_two(tmp_path)
    assert_equal(first["student"], second["student"])
    assert not torch.equal(first["active"], second["active"])
    bank = [rank["source"] for rank in (first, second)]
    assert torch.equal(bank[0]["images"], bank[1]["images"])
    assert torch.equal(bank[0]["labels"], bank[1]["labels"])
    # Four batches, two of each process, and no two alike.
    batches = bank[0]["images"].view(4, 16, -1)
    assert len({batch.sum().item() for batch in batches}) == 4
    samples = load_file(tmp_path / "run" / "samples.safetensors")
    assert torch.equal(samples["images"], bank[0]["images"])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    # Of each process, which makes half of the bank.
    assert result["steps_by_stage"]["synthesis"] == 6
    assert result["evaluated_images"] == 599
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == [
        "MODEL_CARD.md",
        "config.yaml",
        "last.1.ckpt",
        "last.ckpt",
        "metrics.csv",
        "origin.json",
        "report.html",
        "result.json",
        "samples.png",
        "samples.safetensors",
        "student.safetensors",
    ]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_train_one_generator(tmp_path: Path) -> None:
    first, second = run_on_two(tmp_path, "method=hast_alternating")
    assert_equal(first["student"], second["student"])
    statistics = {key for key in first["source"] if "running" in key or "num_batches" in key}
    weights = first["source"].keys() - statistics
    assert weights
    for key in weights:
        assert torch.equal(first["source"][key], second["source"][key]), key
    # They saw images of their own, of noise of their own.
    assert any(not torch.equal(first["source"][k], second["source"][k]) for k in statistics)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_train_on_shares_of_own_pictures(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "pictures.npz", x=x)
    own = (
        "source@sources.bank=images",
        f"sources.bank.path={tmp_path / 'pictures.npz'}",
        "order=[calibration,distillation]",
    )
    # 5 batches of 16 are more than a share, and so show all of it.
    budget = (*OWN_CALIBRATION, "schedule.student_batch=16", "stages.calibration.batch_size=16")
    first, second = run_on_two(tmp_path, *own, *budget, "data=none", "data.holdout=0.25")
    assert_equal(first["student"], second["student"])
    # A picture is labelled when it is first shown: 24 of a process, and those held out.
    known = [rank["source"]["labels"] != -1 for rank in (first, second)]
    assert [int(labels.sum()) for labels in known] == [40, 40]
    assert int((known[0] & known[1]).sum()) == 16
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["agreement_on"], result["evaluated_images"]) == ("held-out own images", 16)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_bank_of_two_processes_serves_one(tmp_path: Path) -> None:
    run_on_two(tmp_path)
    one = [argument for argument in ARGUMENTS if "devices" not in argument]
    load = f"sources.bank.load={tmp_path / 'run' / 'samples.safetensors'}"
    finished = call(*one, load, "hydra.run.dir=one", folder=tmp_path)
    assert finished.status == 0, finished


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_same_effective_batch_gives_the_same_accuracy_within_noise(tmp_path: Path) -> None:
    budget = [
        "schedule.images=512",
        "schedule.image_steps=100",
        "schedule.calibration_steps=50",
        "schedule.student_steps=200",
    ]
    run_on_two(tmp_path, *budget, "schedule.image_batch=128", "schedule.student_batch=32")
    one = [argument for argument in ARGUMENTS if "devices" not in argument]
    finished = call(
        *one,
        *budget,
        "schedule.image_batch=128",
        "schedule.student_batch=64",
        "hydra.run.dir=one",
        folder=tmp_path,
    )
    assert finished.status == 0, finished
    two, single = (
        json.loads((tmp_path / name / "result.json").read_text())["quantized_top1"]
        for name in ("run", "one")
    )
    assert abs(two - single) < 3
    assert min(two, single) > 85


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("words", "logged"),
    [
        (("schedule.student_steps=12",), 5),
        (("schedule.calibration_steps=40",), 9),
        # Six steps make images, three calibrate and correct; a unit has eight.
        (REBUILT, 21),
    ],
    ids=["synthesis", "calibration", "reconstruction"],
)
def test_two_killed_processes_go_on_bit_for_bit(
    tmp_path: Path, words: tuple[str, ...], logged: int
) -> None:
    from tests.test_resume import assert_same_run, steps_logged

    arguments = (*ARGUMENTS, "callbacks.checkpoint_every_n_steps=2", *words)
    finish(begin(tmp_path, *arguments, "hydra.run.dir=whole"))
    killed = begin(tmp_path, *arguments, "hydra.run.dir=killed")
    while steps_logged(tmp_path / "killed") < logged:
        assert [process.poll() for process in killed] == [None, None]
        time.sleep(0.02)
    for process in killed:
        process.kill()
        process.communicate(timeout=120)
    finish(begin(tmp_path, "resume=killed"))
    assert_same_run(tmp_path / "whole", tmp_path / "killed", resumes=1)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def both_ranks() -> list[dict[str, str]]:
    """What torchrun tells two processes of one machine: neither is the other's parent."""
    common = {
        "OMP_NUM_THREADS": "1",
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
    }
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("lost", "sign"),
    [
        (1, signal.SIGKILL),
        pytest.param(0, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGSTOP, marks=pytest.mark.slow),
    ],
    ids=["rank 1 dies", "rank 0 dies", "rank 1 stalls"],
)
def test_a_process_that_loses_the_other_ends_in_one_line(
    tmp_path: Path, lost: int, sign: signal.Signals
) -> None:
    from tests.test_resume import steps_logged

    arguments = (*ARGUMENTS, "schedule.student_steps=100000", "trainer.timeout_minutes=0.25")
    both = begin(tmp_path, *arguments, "hydra.run.dir=run")
    try:
        while steps_logged(tmp_path / "run") < 12:  # in the student's steps, which are shared
            ended = [process.communicate() for process in both if process.poll() is not None]
            assert not ended
            time.sleep(0.05)
        both[lost].send_signal(sign)
        # The timeout is 15 seconds, the rest is for a busy machine to leave Python.
        errors, _ = both[1 - lost].communicate(timeout=120)
    finally:
        for process in both:
            process.kill()
            process.communicate()
    assert both[1 - lost].returncode == 2, errors
    assert "Traceback" not in errors
    lines = [line for line in errors.splitlines() if line.startswith("hast-lightning: ")]
    assert len(lines) == 1, errors
    assert f"process {1 - lost} of 2 lost another one" in lines[0]
    failure = read_failure(tmp_path / "run")
    assert failure is not None
    assert (failure.kind, failure.rank) == ("LostProcessError", 1 - lost)
    assert failure.stage == "distillation"


EVALUATION = """
import os
import signal
import sys

from hast_lightning.cli import main as cli
from hast_lightning.training import evaluation
from hast_lightning.runs import pipeline

fit = pipeline.fit


def fit_then_die(*arguments):
    fit(*arguments)
    if os.environ["RANK"] == "1":
        evaluation._require_finite = lambda *_: os.kill(os.getpid(), signal.SIGKILL)


pipeline.fit = fit_then_die
sys.argv[0] = "hast-lightning"
cli.main()
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_process_that_is_lost_in_the_last_evaluation_ends_the_other_in_one_line(
    tmp_path: Path,
) -> None:
    script = tmp_path / "script.py"
    script.write_text(EVALUATION)
    arguments = (*ARGUMENTS, "trainer.timeout_minutes=0.25", "hydra.run.dir=run")
    first, second = (
        start(str(script), *arguments, cwd=tmp_path, environment=rank) for rank in both_ranks()
    )
    errors, _ = first.communicate(timeout=300)
    second.communicate(timeout=60)
    assert second.returncode == -signal.SIGKILL
    assert first.returncode == 2, errors
    assert "Traceback" not in errors
    assert "process 0 of 2 lost another one" in errors
    failure = read_failure(tmp_path / "run")
    assert failure is not None
    assert failure.kind == "LostProcessError"


ONE_FAILS = """
import os
from hast_lightning.cli.start import main
from hast_lightning.errors import DivergenceError
from hast_lightning.training.module import ZeroShotQuantization

step = ZeroShotQuantization.training_step


def step_or_fail(module, batch, index):
    if module.iteration == 4 and os.environ.get("LOCAL_RANK", "0") == os.environ["FAILS"]:
        raise DivergenceError("a loss became NaN")
    step(module, batch, index)


ZeroShotQuantization.training_step = step_or_fail
main()
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fails", [0, 1])
def test_a_process_that_fails_says_why_in_one_line_and_nobody_aborts(
    tmp_path: Path, fails: int
) -> None:
    """The processes that Lightning starts: no stack trace of theirs, no C++ abort, no path in it.

    What the other process says, where it is quick enough, is that it lost this one.
    """
    script = tmp_path / "script.py"
    script.write_text(ONE_FAILS)
    words = (*ARGUMENTS, "trainer.timeout_minutes=0.25", "hydra.run.dir=run")
    process = start(str(script), *words, cwd=tmp_path, environment={"FAILS": str(fails)})
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 2, output
    announced, *lines = (
        line for line in output.splitlines() if not line.startswith("Initializing distributed")
    )
    assert "on 2 x cpu" in announced
    assert "hast-lightning: a loss became NaN" in lines
    others = [line for line in lines if line != "hast-lightning: a loss became NaN"]
    assert all(re.fullmatch(LOST, line) for line in others) and len(others) <= 1, output


LOST = (
    r"hast-lightning: process \d of 2 lost another one, which ended or did not answer for "
    r"trainer\.timeout_minutes \([^/]*\); resume=<run folder> goes on"
)


def test_a_bank_that_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    refusal = call(*ARGUMENTS, "schedule.images=48", folder=tmp_path).refusal()
    assert "sources.bank.size=48 must be a multiple of" in refusal
    assert "2 processes" in refusal


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_cuda_devices_share_the_student(tmp_path: Path) -> None:
    first, second = run_on_two(tmp_path, "trainer.accelerator=gpu")
    assert_equal(
        {key: value.cpu() for key, value in first["student"].items()},
        {key: value.cpu() for key, value in second["student"].items()},
    )
