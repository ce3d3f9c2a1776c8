"""Loggers: metrics.csv always, wandb or TensorBoard by name."""

from __future__ import annotations

import netrc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import CSVLogger, Logger

from hast_lightning.config import LoggerConfig
from hast_lightning.errors import ConfigurationError

INIT_TIMEOUT_SECONDS = 10


def build_loggers(config: LoggerConfig, folder: Path, settings: dict[str, Any]) -> list[Logger]:
    """The loggers of a run.

    Args:
        config: The ``logger`` group.
        folder: The run folder; ``metrics.csv`` lies directly in it.
        settings: The resolved configuration, for loggers that show one.

    Raises:
        ConfigurationError: the package of the chosen logger is not installed.
    """
    # It flushes by the number of the step, of which only every so many are logged: by its
    # default of 100 it would never come to it before the end.
    csv = CSVLogger(folder, name="", version="", flush_logs_every_n_steps=1)
    loggers: list[Logger] = [csv]
    if config.name == "tensorboard":
        loggers.append(_tensorboard(folder))
    if config.name == "wandb":
        loggers.append(_wandb(config, folder, settings))
    return loggers


def finish_loggers(loggers: Sequence[Logger], succeeded: bool) -> None:
    """Flush and close, also after a failure, so that the next job starts runs of its own."""
    for logger in loggers:
        logger.finalize("success" if succeeded else "failed")
        # Of all the loggers' experiments only wandb's run has it.
        finish = getattr(getattr(logger, "experiment", None), "finish", None)
        if finish is not None:
            finish(exit_code=0 if succeeded else 1)


def _tensorboard(folder: Path) -> Logger:
    from lightning.pytorch.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(folder, name="", version="tensorboard")
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "logger=tensorboard needs the package tensorboard: pip install "
            "'hast-lightning[tensorboard]'"
        ) from error


def _wandb(config: LoggerConfig, folder: Path, settings: dict[str, Any]) -> Logger:
    """An online run where there is a key and the server answers, an offline run otherwise."""
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    arguments: dict[str, Any] = {
        # WANDB_MODE, where the user has set it, decides by itself.
        "mode": None if _wandb_key_exists() or os.environ.get("WANDB_MODE") else "offline",
        "project": config.project,
        "entity": config.entity,
        "group": config.group,
        "tags": list(config.tags),
        "dir": str(folder),
        "config": settings,
    }
    try:
        wandb_settings = wandb.Settings(init_timeout=INIT_TIMEOUT_SECONDS)
        run = wandb.init(settings=wandb_settings, **arguments)
    except wandb.errors.CommError:
        run = wandb.init(**{**arguments, "mode": "offline"})
    return WandbLogger(experiment=run, save_dir=folder)


def _wandb_key_exists() -> bool:
    """Whether wandb would find a key by itself: in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(str(host)) is not None
    except (OSError, netrc.NetrcParseError):
        return False
