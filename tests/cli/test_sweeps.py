"""Presets of sweeps: which jobs they make."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from hast_lightning.cli import main as cli
from hast_lightning.cli import sweeps
from hast_lightning.config import Config
from hast_lightning.runs import pipeline
from tests.command_line import TINY, call


def jobs(preset: str, folder: Path, *arguments: str) -> list[Config]:
    """The configurations of the jobs that a preset starts, none of which is carried out."""
    seen: list[Config] = []

    def run(config: Config, _: Path, command: str) -> None:
        # What is recorded as the command of a job is no sweep.
        assert preset == "none" or "sweep=" not in command
        assert preset != "seeds" or f"seed={config.seed}" in command.split()
        seen.append(config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "run", run)
        finished = call(f"sweep={preset}", *arguments, folder=folder)
    assert finished.status == 0, finished
    return seen


def test_the_ablation_is_every_combination_of_three_switches(tmp_path: Path) -> None:
    switches = {
        (
            config.stages["synthesis"].terms["hard_cross_entropy"].by_difficulty,
            config.stages["distillation"].transforms["promotion"].enabled,
            config.stages["distillation"].terms["alignment"].enabled,
        )
        for config in jobs("ablation", tmp_path)
    }
    assert len(switches) == 8


def test_bits_of_weights_and_activations_go_together(tmp_path: Path) -> None:
    bits = [
        (config.quantizer.weight_bits, config.quantizer.activation_bits)
        for config in jobs("bits", tmp_path)
    ]
    assert bits == [(bits, bits) for bits in range(2, 9)]


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("none", 1),
        ("seeds", 3),
        # All of them are of one kind.
        *(
            pytest.param(preset, count, marks=pytest.mark.slow)
            for preset, count in (("hardness", 12), ("promotion", 5), ("alignment", 5))
        ),
    ],
)
def test_the_other_presets(preset: str, count: int, tmp_path: Path) -> None:
    assert len(jobs(preset, tmp_path)) == count


def test_a_preset_goes_with_a_recipe(tmp_path: Path) -> None:
    found = jobs("seeds", tmp_path, "+experiment=digits_w2a2")
    assert {(config.recipe, config.seed) for config in found} == {
        ("digits_w2a2", 0),
        ("digits_w2a2", 1),
        ("digits_w2a2", 2),
    }


@pytest.mark.slow
def test_jobs_run_in_parallel_and_one_that_is_refused_takes_none_down(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    parallel = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep")
    widths = "quantizer.weight_bits=9,2"
    finished = call("-m", *TINY, "data=none", widths, *parallel, folder=tmp_path)
    assert finished.status == cli.USER_ERROR_STATUS, finished
    assert "1 job of the sweep" in finished.err
    assert (tmp_path / "sweep" / "1" / "result.json").exists()


@pytest.mark.parametrize(
    ("process", "devices", "taken"),
    [
        *[("LokyProcess-1", "4,5", "4"), ("LokyProcess-2", "4,5", "5")],
        ("LokyProcess-3", "4,5", "4"),  # more processes than devices share them
        *[("LokyProcess-2", "7", "7"), ("LokyProcess-1", "", "")],
        ("MainProcess", "4,5", "4,5"),
    ],
)
def test_each_process_of_joblib_takes_a_device_of_its_own(
    process: str, devices: str, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(sweeps.DEVICES, devices)
    monkeypatch.setattr(multiprocessing.current_process(), "name", process)
    sweeps.take_own_device()
    assert os.environ[sweeps.DEVICES] == taken


def test_joblib_still_names_its_processes_so() -> None:
    loky = pytest.importorskip("joblib.externals.loky.backend.process")
    assert sweeps.WORKER.match(loky.LokyProcess().name)


def test_a_search_maximizes_the_agreement(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    trials = ("sweep=search", "hydra.sweeper.n_trials=2", "hydra.sweep.dir=search")
    finished = call(*TINY, *trials, folder=tmp_path)
    assert finished.status == 0, finished
    best = (tmp_path / "search" / "optimization_results.yaml").read_text()
    assert "hard_cross_entropy.weight" in best
    refused = call(*TINY, *trials, "data=digits", folder=tmp_path)
    assert refused.status == cli.USER_ERROR_STATUS
    assert "would choose by the labels" in refused.err


@pytest.mark.parametrize(("group", "name"), [("sweeper", "optuna"), ("launcher", "joblib")])
def test_a_missing_plugin_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, name: str
) -> None:
    from hydra.core.config_store import ConfigStore

    pytest.importorskip(f"hydra_plugins.hydra_{name}_{group}")
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"][group], f"{name}.yaml")
    finished = call("-m", f"hydra/{group}={name}", "seed=1", folder=tmp_path)
    assert "pip install 'hast-lightning[sweeps]'" in finished.refusal()


def test_a_sweep_does_not_repeat_what_makes_no_run(tmp_path: Path) -> None:
    compared = ("command=compare", f"runs={tmp_path}", "hydra.sweep.dir=jobs")
    finished = call("-m", "seed=0,1", *compared, folder=tmp_path)
    assert finished.status == cli.USER_ERROR_STATUS
    assert "command=compare makes no run, so a sweep would only repeat it" in finished.err


def test_the_words_of_a_job_start_that_job_alone() -> None:
    words = ["+experiment=digits_w2a2", "sweep=search", "seed=1", "sources.bank.lr=0.3"]
    assert list(sweeps.own_words(words)) == [
        *("+experiment=digits_w2a2", "data=none", "seed=1", "sources.bank.lr=0.3")
    ]
    assert list(sweeps.own_words(["sweep=ablation", "seed=0"])) == ["seed=0"]
