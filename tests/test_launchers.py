"""Launchers of a sweep: what SLURM is handed and what its jobs then do, and Ray for real."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hydra.core.singleton import Singleton
from omegaconf import OmegaConf

from hast_lightning.cli import main as cli
from hast_lightning.cli import sweeps
from hast_lightning.config import Config, one_line
from hast_lightning.errors import ConfigurationError
from hast_lightning.runs import pipeline
from tests.command_line import TINY, call

ARRAY = 4711
ONLY_IMAGES = ("order=[synthesis]", "report=false")
SLURM = (
    "hydra/launcher=submitit_slurm",
    "hydra.launcher.partition=gpu",
    "hydra.launcher.gpus_per_node=1",
    "hydra.launcher.cpus_per_task=4",
    "hydra.launcher.timeout_min=240",
    "hydra.sweep.dir=sweep",
)


@dataclass
class Cluster:
    """Stands in for SLURM: takes the batch file, and carries the pickled jobs out right here.

    Attributes:
        jobs: The jobs' configurations and folders, in order.
    """

    jobs: list[tuple[Config, Path]] = field(default_factory=list)

    def record(self, config: Config, folder: Path, command: str) -> None:
        if config.seed == 13:
            raise ConfigurationError("seed=13 brings bad luck")
        self.jobs.append((config, folder))


def executable(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    from submitit.core.utils import DelayedSubmission
    from submitit.slurm.slurm import SlurmJob

    commands = tmp_path / "commands"
    commands.mkdir()
    executable(commands / "sbatch", f'cp "$1" {commands}/batch; echo "Submitted batch job {ARRAY}"')
    executable(commands / "srun", "exit 1")
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    found = Cluster()
    monkeypatch.setattr(pipeline, "run", found.record)

    def results(job: SlurmJob[Any]) -> list[Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SUBMITIT_EXECUTOR", "slurm")
            patch.setenv("SLURM_JOB_ID", str(ARRAY + 1))
            # What the compute node reads, not what this process still holds.
            return [DelayedSubmission.load(job.paths.submitted_pickle).result()]

    monkeypatch.setattr(SlurmJob, "results", results)
    state = Singleton.get_state()
    yield found
    Singleton.set_state(state)


def batch_flags(tmp_path: Path) -> set[str]:
    text = (tmp_path / "commands" / "batch").read_text(encoding="utf-8")
    return {line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH" in line}


def test_slurm_gets_one_array_with_what_was_asked_for(cluster: Cluster, tmp_path: Path) -> None:
    finished = call("sweep=seeds", *SLURM, *TINY, folder=tmp_path)
    assert finished.status == 0, finished
    assert batch_flags(tmp_path) >= {
        "--array=0-2%3",
        "--cpus-per-task=4",
        "--gpus-per-node=1",
        "--ntasks-per-node=1",
        "--partition=gpu",
        "--time=240",
    }
    assert [config.seed for config, _ in cluster.jobs] == [0, 1, 2]
    assert [folder.parts[-2:] for _, folder in cluster.jobs] == [
        ("sweep", str(number)) for number in range(3)
    ]


def test_a_job_that_is_refused_on_slurm_is_listed_and_takes_none_down(
    cluster: Cluster, tmp_path: Path
) -> None:
    finished = call("-m", "seed=12,13,14", *SLURM, *TINY, folder=tmp_path)
    assert finished.status == cli.USER_ERROR_STATUS
    assert "1 job of the sweep" in finished.err
    assert "seed=13 brings bad luck" in finished.err
    assert [config.seed for config, _ in cluster.jobs] == [12, 14]


def test_jobs_may_be_asked_to_work_in_their_folders(cluster: Cluster, tmp_path: Path) -> None:
    finished = call("-m", "seed=1,2", "hydra.job.chdir=true", *SLURM, *TINY, folder=tmp_path)
    assert finished.status == 0, finished
    assert len(cluster.jobs) == 2


def test_a_key_that_the_launcher_does_not_have_is_refused_before_anything_is_submitted(
    cluster: Cluster, tmp_path: Path
) -> None:
    line = call("-m", "seed=1,2", *SLURM, "hydra.launcher.partitions=gpu", folder=tmp_path)
    assert "partitions" in line.refusal()
    assert not (tmp_path / "commands" / "batch").exists()


@pytest.mark.parametrize("launcher", ["ray", "ray_cluster"])
def test_ray_is_named_with_its_extra(launcher: str, tmp_path: Path) -> None:
    if find_spec("hydra_plugins.hydra_ray_launcher"):
        pytest.skip("the launcher for Ray is installed, so nothing is missing to be named")
    line = call("-m", "seed=1,2", f"hydra/launcher={launcher}", folder=tmp_path).refusal()
    assert line == "ray needs a plugin of Hydra: pip install 'hast-lightning[ray]'"


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """A Ray cluster of this machine alone, which counts two GPUs whether there are any or not."""
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="make test-ray has it")
    with pytest.MonkeyPatch.context() as patch:
        # Without it Ray leaves a token in the home folder.
        patch.setenv("RAY_AUTH_MODE", "disabled")
        from ray.cluster_utils import Cluster as RayCluster

        cluster = RayCluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 2})
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster.address
        cluster.shutdown()


def in_a_process(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hast_lightning", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_address")
def test_a_ray_cluster_runs_the_jobs_on_one_device_each_and_lists_the_one_that_is_refused(
    tmp_path: Path,
) -> None:
    finished = in_a_process(
        *("-m", "quantizer.weight_bits=2,9,3", *TINY, *ONLY_IMAGES),
        *("hydra/launcher=ray_cluster", "hydra.launcher.ray.remote.num_cpus=1"),
        *("hydra.sweep.dir=sweep", "logger.tags=['${oc.env:CUDA_VISIBLE_DEVICES}']"),
        folder=tmp_path,
    )
    assert finished.returncode == cli.USER_ERROR_STATUS, finished
    assert "1 job of the sweep" in finished.stderr
    assert "quantizer.weight_bits=9" in finished.stderr
    assert not (tmp_path / "sweep" / "1" / "config.yaml").exists()
    for job in ("0", "2"):
        assert (tmp_path / "sweep" / job / "samples.safetensors").is_file()
        # Written by the job, from the environment that Ray gave it.
        device, *_ = OmegaConf.load(tmp_path / "sweep" / job / "config.yaml").logger.tags
        assert device in ("0", "1")


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_address")
def test_a_machine_without_the_folder_of_the_sweep_ends_it_in_one_line(tmp_path: Path) -> None:
    variables = "hydra.launcher.ray.init.runtime_env.env_vars"
    finished = in_a_process(
        *("-m", "seed=1,2", *TINY, "hydra/launcher=ray_cluster"),
        *("hydra.launcher.ray.remote.num_cpus=1", f"{variables}.{sweeps.STARTED_IN}=/nowhere"),
        *("hydra.sweep.dir=${hydra.runtime.cwd}/sweep",),
        folder=tmp_path,
    )
    assert finished.returncode == cli.USER_ERROR_STATUS, finished
    assert finished.stderr.splitlines()[-1] == (
        f"hast-lightning: {tmp_path}: the sweep was started there, but {platform.node()} has no "
        "such folder: the machines of a cluster have to share it"
    )


@pytest.mark.timeout(300)
def test_ray_runs_the_jobs_on_this_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="make test-ray has it")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    # "local" even where a cluster is running, which the test before has just left.
    alone = ("hydra/launcher=ray", "hydra.launcher.ray.init.address=local")
    small = (*TINY, *ONLY_IMAGES, "hydra.sweep.dir=sweep")
    finished = in_a_process("-m", "seed=1,2", *alone, *small, folder=tmp_path)
    assert finished.returncode == 0, finished
    for job in ("0", "1"):
        assert (tmp_path / "sweep" / job / "samples.safetensors").is_file()


@pytest.mark.parametrize("error", [ValueError, ConnectionError])
def test_what_a_launcher_complains_of_is_passed_on(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither taken for a mistyped option nor for a file that the system refused."""
    monkeypatch.setattr(sys, "argv", ["hast-lightning", "-m", "hydra/launcher=ray", "seed=1,2"])
    assert one_line(error("no cluster\n  is running")) == "no cluster is running"


@pytest.mark.slow
def test_submitit_runs_real_jobs_in_processes_of_their_own(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    small = (*TINY, *ONLY_IMAGES, "hydra.sweep.dir=sweep", "hydra.launcher.timeout_min=5")
    finished = call("-m", "seed=1,2", "hydra/launcher=submitit_local", *small, folder=tmp_path)
    assert finished.status == 0, finished
    for job in ("0", "1"):
        assert (tmp_path / "sweep" / job / "samples.safetensors").is_file()
