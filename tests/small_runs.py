"""Configurations, modules and fits small enough to make one for every question."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Sequence

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader

from hast_lightning.config import Config, to_object
from hast_lightning.data.ticker import StepTicker
from hast_lightning.models import zoo
from hast_lightning.runs.assembly import EXPECTED_WARNINGS
from hast_lightning.runtime.trainer import build_trainer
from hast_lightning.sources.factory import source_for
from hast_lightning.training.module import ZeroShotQuantization
from hast_lightning.training.schedule import build_schedule
from tests.command_line import TINY
from tests.composition import composed_raw

GENERATOR = (
    "synthesis.source=generator",
    "synthesis.generator.batch_size=8",
    "schedule.synthesis_steps=6",
)
ALTERNATING = ("schedule.name=alternating", "schedule.synthesis_steps=null")


@functools.cache
def _base() -> DictConfig:
    return composed_raw(*TINY, "quantizer=minmax", "trainer.threads=1")


def small(*overrides: str) -> Config:
    """The bundled network at W3A3 in 6 synthesis, 2 calibration and 3 student steps.

    Args:
        overrides: ``key=value`` with dotted keys; no groups.
    """
    merged = OmegaConf.merge(copy.deepcopy(_base()), OmegaConf.from_dotlist(list(overrides)))
    assert isinstance(merged, DictConfig)
    return to_object(merged)


def build_module(config: Config) -> ZeroShotQuantization:
    """The module of a run, from the configuration's seed on."""
    torch.manual_seed(config.seed)
    network = zoo.load(config.model)
    source = source_for(config.synthesis, network, config.data.holdout)
    loaded = config.synthesis.load is not None
    schedule = build_schedule(config.schedule, source.steps_to_fill, config.run, loaded)
    return ZeroShotQuantization(config, network, source, schedule)


def fit(
    module: ZeroShotQuantization,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
) -> None:
    """The whole schedule, without files."""
    trainer = build_trainer(module.config.trainer, loggers, callbacks)
    ticker = StepTicker(module.iteration, module.schedule.iterations)
    with warnings.catch_warnings():
        for pattern in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", pattern)
        trainer.fit(module, DataLoader(ticker, batch_size=None))
