"""A run that is killed and taken up again ends as one that ran in one go, bit for bit."""

from __future__ import annotations

import fcntl
import json
import random
import shlex
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hast_lightning.cli import main as cli
from hast_lightning.errors import TERMINATED_STATUS, ConfigurationError, DataError, ModelError
from hast_lightning.records.failure import how_it_ended
from hast_lightning.records.folder import CHECKPOINT_FILE, RESULT_FILE, SAMPLES_FILE
from hast_lightning.runs.pipeline import resume
from hast_lightning.training.callbacks.checkpoint import last_whole_checkpoint
from tests.checkpoints import content, differences
from tests.command_line import TINY, call
from tests.command_line import content as content_of
from tests.processes import Forked

# Every stage takes a few seconds and holds several checkpoints.
ARGUMENTS = (
    "trainer.accelerator=cpu",
    "trainer.threads=1",
    "trainer.log_every_n_steps=1",
    "callbacks.progress=false",
    "callbacks.checkpoint_every_n_steps=7",
    "schedule.images=128",
    "schedule.image_batch=64",
    "schedule.image_steps=20",
    "schedule.calibration_steps=40",
    "schedule.student_steps=40",
    "schedule.student_batch=16",
)
ALTERNATING = ("method=hast_alternating",)
OWN_IMAGES = ("source@sources.bank=images", "order=[calibration,distillation]")
STAGES = {"synthesis": (0, 40), "calibration": (40, 80), "distillation": (80, 120)}
NOT_COMPARED = {
    "seconds_by_stage",
    "peak_memory_bytes",
    "disk_bytes",
    "resumes",
    "command",
    "exports",
    # Of the checkout, which may change between the two runs.
    "git_commit",
}


def steps_logged(run: Path) -> int:
    file = run / "metrics.csv"
    return file.read_text().count("\n") - 1 if file.exists() else 0


def kill_within(process: Forked, run: Path, first: int, last: int, sign: signal.Signals) -> bool:
    """Kill when a random number of steps between the two is logged; false if it ended before."""
    wanted = random.randint(first, last - 1)
    while process.poll() is None:
        if steps_logged(run) >= wanted:
            time.sleep(random.uniform(0, 0.05))
            process.send_signal(sign)
            process.communicate()
            return True
        time.sleep(0.01)
    return False


def load(run: Path) -> dict[str, Any]:
    return content(run / CHECKPOINT_FILE)


def assert_same_run(whole: Path, killed: Path, resumes: int) -> None:
    assert differences(load(whole), load(killed)) == []
    assert (whole / "metrics.csv").read_bytes() == (killed / "metrics.csv").read_bytes()
    # Not the bytes: the library writes the header's entries in any order.
    assert differences(load_file(whole / SAMPLES_FILE), load_file(killed / SAMPLES_FILE)) == []
    left, right = (json.loads((run / RESULT_FILE).read_text()) for run in (whole, killed))
    # A kill that comes before the folder says "taken up again" has only prolonged the one before.
    assert 0 < right["resumes"] <= resumes
    assert right["command"].endswith("hydra.run.dir=killed")
    assert [key for key in left if left[key] != right[key] and key not in NOT_COMPARED] == []


def run_whole(folder: Path, *arguments: str) -> Path:
    finished = call(*arguments, "hydra.run.dir=whole", folder=folder)
    assert finished.status == 0, finished
    return folder / "whole"


def kill_and_resume(folder: Path, arguments: tuple[str, ...], kills: list[tuple[int, int]]) -> int:
    """Run in ``killed``, killed within each span of steps; returns how often it was."""
    run = folder / "killed"
    process, done = Forked(folder, *arguments, "hydra.run.dir=killed"), 0
    for index, (first, last) in enumerate(kills):
        sign = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)[index % 3]
        if not kill_within(process, run, first, last, sign):
            break
        done += 1
        # Before the claim of the folder there is nothing to resume.
        process = Forked(folder, "resume=killed")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return done


@pytest.mark.timeout(900)  # several processes, on a machine that may be busy
@pytest.mark.slow
def test_a_run_that_is_terminated_says_so_and_is_no_success(tmp_path: Path) -> None:
    process = Forked(tmp_path, *ARGUMENTS, "hydra.run.dir=killed")
    first, last = STAGES["distillation"]
    assert kill_within(process, tmp_path / "killed", first, last, signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == TERMINATED_STATUS, output
    assert output.splitlines()[-1].startswith("hast-lightning: terminated; the run is in killed")
    assert "Terminated at step" in (tmp_path / "killed" / "report.html").read_text()


@pytest.mark.timeout(900)  # several processes, on a machine that may be busy
@pytest.mark.slow
def test_a_run_that_the_user_ends_goes_on_with_the_command_that_it_prints(tmp_path: Path) -> None:
    """In the middle of every stage, long before a checkpoint would be due, and no step is lost."""
    random.seed(3)
    rare = ("callbacks.checkpoint_every_n_steps=1000", "callbacks.checkpoint_every_n_minutes=600")
    arguments = tuple(a for a in ARGUMENTS if "every_n_steps=7" not in a) + rare
    whole = run_whole(tmp_path, *arguments)
    words, run = [*arguments, "hydra.run.dir=killed"], tmp_path / "killed"
    for first, last in STAGES.values():
        process = Forked(tmp_path, *words)
        assert kill_within(process, run, first + 3, last - 10, signal.SIGINT)
        output, _ = process.communicate()
        assert process.returncode == cli.INTERRUPTED_STATUS, output
        line = output.splitlines()[-1]
        assert line.startswith("hast-lightning: interrupted; the run is in killed and goes on with")
        words = shlex.split(line.rpartition("python -m hast_lightning ")[2])
        done = torch.load(run / CHECKPOINT_FILE, weights_only=True)["iteration"]
        assert done == steps_logged(run)
        assert how_it_ended(run).startswith(f"interrupted at step {done - first + 1}")
    process = Forked(tmp_path, *words)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert_same_run(whole, run, len(STAGES))


@pytest.mark.timeout(900)  # several processes, on a machine that may be busy
def test_a_killed_run_ends_bit_identical_to_one_that_was_not(tmp_path: Path) -> None:
    random.seed(0)
    whole = run_whole(tmp_path, *ARGUMENTS)
    spans = [STAGES["synthesis"], STAGES["distillation"]]
    kills = kill_and_resume(tmp_path, ARGUMENTS, spans)
    assert kills == 2
    assert_same_run(whole, tmp_path / "killed", kills)
    # These kills are stages apart, so that each comes after the resume before it was recorded.
    assert json.loads((tmp_path / "killed" / RESULT_FILE).read_text())["resumes"] == kills


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("extra", "kills"), [((), 14), (ALTERNATING, 6)], ids=["hast", "alternating"]
)
def test_twenty_kills_at_random_moments_lose_nothing(
    tmp_path: Path, extra: tuple[str, ...], kills: int
) -> None:
    random.seed(1)
    arguments = (*ARGUMENTS, *extra)
    whole = run_whole(tmp_path, *arguments)
    total = steps_logged(whole)
    # Seven steps lie between checkpoints, so that the spans may follow each other closely.
    parts = kills + 4
    spans = [(index * total // parts, (index + 2) * total // parts) for index in range(kills)]
    assert kill_and_resume(tmp_path, arguments, spans) == kills
    assert_same_run(whole, tmp_path / "killed", kills)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_on_cuda_a_killed_run_ends_near_one_that_was_not(tmp_path: Path, precision: str) -> None:
    random.seed(2)
    arguments = tuple(a for a in ARGUMENTS if not a.startswith("trainer.accelerator"))
    arguments += ("trainer.accelerator=gpu", f"trainer.precision={precision}")
    whole = load(run_whole(tmp_path, *arguments))
    kills = kill_and_resume(tmp_path, arguments, [STAGES["synthesis"], STAGES["distillation"]])
    assert kills == 2
    killed = load(tmp_path / "killed")
    assert killed["iteration"] == whole["iteration"]
    # Additions in another order round otherwise, and a rounded weight may fall to the level next
    # to it; what a stream or an optimizer that was lost would do is far larger.
    for key, value in whole["state_dict"].items():
        if key.startswith("student.") and key.endswith("weight"):
            distance = (killed["state_dict"][key] - value).norm() / value.norm()
            assert distance < 0.02, key


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as a power cut at its end would leave it: everything but the result."""
    folder = tmp_path_factory.mktemp("unfinished")
    finished = call(
        *TINY, "callbacks.checkpoint_every_n_steps=4", "hydra.run.dir=run", folder=folder
    )
    assert finished.status == 0, finished
    (folder / "run" / RESULT_FILE).rename(folder / RESULT_FILE)
    return folder


@pytest.fixture
def run(unfinished: Path, tmp_path: Path) -> Path:
    shutil.copytree(unfinished / "run", tmp_path / "run")
    return tmp_path / "run"


def test_a_run_that_only_lacks_its_result_is_evaluated(run: Path, unfinished: Path) -> None:
    assert call("resume=run", folder=run.parent).status == 0
    before, now = (json.loads((f / RESULT_FILE).read_text()) for f in (unfinished, run))
    assert now["quantized_top1"] == before["quantized_top1"]
    assert now["calibrated_top1"] == before["calibrated_top1"]
    assert now["resumes"] == 1


def test_samples_that_were_not_saved_in_time_are_saved(run: Path) -> None:
    expected = load_file(run / SAMPLES_FILE)
    (run / SAMPLES_FILE).unlink()
    assert call("resume=run", folder=run.parent).status == 0
    assert differences(load_file(run / SAMPLES_FILE), expected) == []


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "pictures.npz", x=x)
    return tmp_path / "pictures.npz"


def test_own_pictures_go_on_where_their_order_was_left(tmp_path: Path, pictures: Path) -> None:
    whole = run_whole(
        tmp_path,
        *TINY,
        *OWN_IMAGES,
        f"sources.bank.path={pictures}",
        "schedule.student_steps=8",
        "callbacks.checkpoint_every_n_steps=6",
    )
    # As a power cut after the first checkpoint would leave it.
    killed = tmp_path / "killed"
    shutil.copytree(whole, killed)
    (killed / RESULT_FILE).unlink()
    (killed / "last.1.ckpt").replace(killed / CHECKPOINT_FILE)
    assert torch.load(killed / CHECKPOINT_FILE, weights_only=True)["iteration"] == 6
    assert call("resume=killed", folder=tmp_path).status == 0
    assert differences(load(whole), load(killed)) == []
    assert (whole / "metrics.csv").read_bytes() == (killed / "metrics.csv").read_bytes()


def test_other_pictures_than_before_are_refused(tmp_path: Path, pictures: Path) -> None:
    whole = run_whole(tmp_path, *TINY, *OWN_IMAGES, f"sources.bank.path={pictures}")
    (whole / RESULT_FILE).unlink()
    np.savez(pictures, x=np.zeros((20, 8, 8, 1), np.uint8))
    refusal = call("resume=whole", folder=tmp_path).refusal()
    assert "these are not the pictures that the run began with" in refusal


def test_a_run_without_a_checkpoint_begins_anew(run: Path, unfinished: Path) -> None:
    for file in run.glob("last*.ckpt"):
        file.unlink()
    (run / "metrics.csv").unlink()
    assert call("resume=run", folder=run.parent).status == 0
    before, now = (json.loads((f / RESULT_FILE).read_text()) for f in (unfinished, run))
    assert now["quantized_top1"] == before["quantized_top1"]


def test_a_torn_checkpoint_is_passed_over_with_a_warning(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    last = run / CHECKPOINT_FILE
    last.write_bytes(last.read_bytes()[:-1000])
    assert last_whole_checkpoint(last) == run / "last.1.ckpt"
    assert "last.ckpt is damaged" in caplog.text


def test_a_copy_of_the_user_beside_the_checkpoints_is_let_alone(run: Path) -> None:
    last = run / CHECKPOINT_FILE
    shutil.copy(last, run / "last.backup.ckpt")
    assert last_whole_checkpoint(last) == last


def test_a_flipped_bit_is_noticed(run: Path) -> None:
    last = run / CHECKPOINT_FILE
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    assert last_whole_checkpoint(last) == run / "last.1.ckpt"


def test_checkpoints_that_are_all_torn_are_an_error(run: Path) -> None:
    for file in run.glob("last*.ckpt"):
        file.write_bytes(b"torn")
    with pytest.raises(DataError, match=r"every checkpoint in .* is damaged"):
        resume(run)
    assert not (run / RESULT_FILE).exists()


def test_a_finished_run_is_left_alone(run: Path) -> None:
    (run / RESULT_FILE).write_text("{}")
    with pytest.raises(ConfigurationError, match="came to its end"):
        resume(run)


def test_a_run_that_still_runs_is_left_alone(run: Path) -> None:
    before = content_of(run.parent)
    with (run / "config.yaml").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refusal = call("resume=run", folder=run.parent).refusal()
        assert refusal == "run: another process is at work on this run; wait for it, or end it"
        assert content_of(run.parent) == before
    assert call("resume=run", folder=run.parent).status == 0


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    refusal = call("resume=nowhere", folder=tmp_path).refusal()
    assert refusal == "resume=nowhere: there is no run (config.yaml is missing)"


def test_another_configuration_is_refused_by_name(run: Path) -> None:
    refusal = call("resume=run", "quantizer.weight_bits=4", folder=run.parent).refusal()
    assert "leave out quantizer.weight_bits=4" in refusal


def test_another_teacher_is_refused_by_name(run: Path) -> None:
    for file in run.glob("last*.ckpt"):
        content = torch.load(file, weights_only=True)
        torch.save({**content, "teacher_checksum": "0" * 64}, file)
    with pytest.raises(ModelError, match="other weights of digits_resnet"):
        resume(run)


def test_another_version_is_warned_of_by_name(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    origin = json.loads((run / "origin.json").read_text())
    origin["versions"]["torch"] = "1.0"
    (run / "origin.json").write_text(json.dumps(origin))
    assert resume(run) is not None
    assert "torch was 1.0 when the run began" in caplog.text


@pytest.mark.parametrize("name", ["config.yaml", "origin.json"])
def test_damaged_records_are_refused(run: Path, name: str) -> None:
    (run / name).write_text("{")
    with pytest.raises(ConfigurationError, match=rf"{name} cannot be read"):
        resume(run)


def test_checkpoints_leave_the_teacher_and_the_loops_out(run: Path) -> None:
    content = torch.load(run / CHECKPOINT_FILE, weights_only=True)
    assert "loops" not in content
    assert not [key for key in content["state_dict"] if key.startswith("teacher.")]
    assert [file.name for file in sorted(run.glob("*.ckpt"))] == ["last.1.ckpt", "last.ckpt"]
