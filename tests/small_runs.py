"""Configurations, modules and fits small enough to make one for every question."""

from __future__ import annotations

import copy
import functools
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader

from hast_lightning.config import Config, to_object
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.core.stage import Bench, Outcome
from hast_lightning.data.ticker import StepTicker
from hast_lightning.models import zoo
from hast_lightning.runs.assembly import EXPECTED_WARNINGS, build_sources
from hast_lightning.runtime.trainer import build_trainer
from hast_lightning.stages.distill import Distill
from hast_lightning.training.callbacks.checkpoint import LastCheckpoint, numbered
from hast_lightning.training.module import ZeroShotQuantization
from tests.checkpoints import content, differences
from tests.command_line import TINY
from tests.composition import composed_raw

GENERATOR = (
    "source@sources.bank=generator",
    "sources.bank.batch_size=8",
    "stages.synthesis.steps=6",
)
"""The stages of HAST with a generator in place of the bank."""
OWN_CALIBRATION = (
    "stages.calibration.source=bank",
    "stages.calibration.terms.bns.enabled=false",
    "stages.calibration.terms.cross_entropy.enabled=false",
)
"""Ranges observe what the student learns from, which stays as it is."""
ALTERNATING = ("method=hast_alternating",)
ALTERNATING_BANK = (
    *ALTERNATING,
    "+source@sources.bank=image_bank_of_schedule",
    "stages.calibration.source=bank",
    "stages.alternation.synthesis.source=bank",
    "stages.alternation.distillation.source=bank",
    "stages.alternation.distillation.batch_size=8",
)
GROUPS = ("method", "quantizer", "model")


PLAIN = ("trainer.threads=1", "trainer.precision=32-true")
"""What a run decides by its machine otherwise."""


@functools.cache
def small_raw(*groups: str) -> DictConfig:
    """Compose the same, not checked yet, with choices of groups alone; to be copied."""
    return composed_raw(*TINY, "quantizer=minmax", *PLAIN, *groups)


def small(*overrides: str) -> Config:
    """Compose the bundled network at W3A3 in 6 synthesis, 2 calibration and 3 student steps.

    Args:
        overrides: Words of the command line. Those that choose no group are merged in, which
            takes a hundredth of the time.
    """
    keys = {word: word.partition("=")[0] for word in overrides}
    groups = [word for word, key in keys.items() if key in GROUPS or "@" in key]
    values = [word for word in overrides if word not in groups]
    merged = OmegaConf.merge(copy.deepcopy(small_raw(*groups)), OmegaConf.from_dotlist(values))
    assert isinstance(merged, DictConfig)
    return to_object(merged)


def build_module(config: Config, network: PretrainedNetwork | None = None) -> ZeroShotQuantization:
    """Build the module of a run, from the configuration's seed on."""
    torch.manual_seed(config.seed)
    network = network or zoo.load_all(config.model, config.teachers)
    return ZeroShotQuantization(config, network, build_sources(config, network))


class Saved(Callback):
    """Saves the run behind one iteration."""

    def __init__(self, at: int, path: Path) -> None:
        self.at, self.path = at, path

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        if pl_module.iteration == self.at:
            trainer.save_checkpoint(self.path)


def fit(
    module: ZeroShotQuantization,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    checkpoint: Path | None = None,
) -> None:
    """Go through the whole agenda, or through what is left of it behind a checkpoint."""
    trainer = build_trainer(module.config.trainer, loggers, callbacks)
    done = 0 if checkpoint is None else torch.load(checkpoint, weights_only=True)["iteration"]
    ticker = StepTicker(done, module.agenda.iterations)
    with warnings.catch_warnings():
        for pattern in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", pattern)
        trainer.fit(
            module, DataLoader(ticker, batch_size=None), ckpt_path=checkpoint, weights_only=True
        )


def diverge_at_the_second_student_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let that step spoil a weight."""
    step = Distill.step

    def diverge(self: Distill, bench: Bench, index: int) -> Outcome:
        if index == 1:
            with torch.no_grad():
                next(bench.student.parameters()).fill_(float("nan"))
        return step(self, bench, index)

    monkeypatch.setattr(Distill, "step", diverge)


def assert_same_end_from_everywhere(config: Config, folder: Path, *at: int) -> None:
    """Run with a checkpoint behind every iteration, and once more from each of them.

    Args:
        config: Of the run.
        folder: Where the checkpoints go.
        at: Iterations to go on from; none: all of them.
    """
    last = folder / "last.ckpt"
    module = build_module(config)
    fit(module, [LastCheckpoint(last, every_n_steps=1, kept=100)])
    expected, total = content(last), module.agenda.iterations
    assert expected["iteration"] == total
    for iteration in at or range(1, total):
        begun = folder / "begun.ckpt"
        shutil.copy(numbered(last, total - iteration), begun)
        resumed = build_module(config)
        fit(resumed, [LastCheckpoint(folder / "end.ckpt", every_n_steps=1)], checkpoint=begun)
        assert resumed.iteration == total
        different = differences(expected, content(folder / "end.ckpt"))
        assert not different, (iteration, different)
