"""Loggers: metrics.csv always, wandb or TensorBoard by name."""

from __future__ import annotations

import csv
import logging
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import Logger as FabricLogger
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import CSVLogger, Logger

from hast_lightning.config import LoggerConfig
from hast_lightning.errors import ConfigurationError, first_line
from hast_lightning.tracking.facts import Description
from hast_lightning.tracking.media import MediaLogger
from hast_lightning.tracking.stage_loggers import StageTensorBoardLogger, StageWandbLogger
from hast_lightning.tracking.wandb_key import wandb_key_exists
from hast_lightning.training.agenda import Agenda

_log = logging.getLogger(__name__)

INIT_TIMEOUT_SECONDS = 10
WANDB_ID_FILE = "wandb_id.txt"
# Those that wandb makes up, and whatever WANDB_RUN_ID may hold.
WANDB_ID = re.compile(r"[^:;,#?/'\s]{1,128}")


def require_logger(config: LoggerConfig) -> None:
    """Refuse a logger that cannot be used here.

    Raises:
        ConfigurationError: its package is not installed, or wandb is to be online and has no key.
    """
    mode = os.environ.get("WANDB_MODE")
    if config.name == "wandb" and mode in ("online", "shared") and not wandb_key_exists():
        raise ConfigurationError(
            f"logger=wandb finds no key and WANDB_MODE={mode} wants one: set WANDB_API_KEY, run "
            "'wandb login', or leave WANDB_MODE out to log offline"
        )
    if config.name == "wandb":
        _require_wandb(config)
    if config.name == "tensorboard" and find_spec("tensorboard") is None:
        raise ConfigurationError(
            "logger=tensorboard needs the package tensorboard: pip install "
            "'hast-lightning[tensorboard]'"
        )


def _require_wandb(config: LoggerConfig) -> None:
    """Have wandb read its settings, before it has a folder and a process of its own."""
    import wandb

    try:
        wandb.Settings(project=config.project).update_from_env_vars(dict(os.environ))
    except (wandb.errors.UsageError, ValueError) as error:
        raise ConfigurationError(f"logger=wandb: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return why wandb does not take its settings, in one line."""
    # Pydantic's own text has many lines, most of them about itself.
    listed = getattr(error, "errors", None)
    if listed is None:
        return " ".join(str(error).split())
    return "; ".join(
        f"{'.'.join(map(str, each['loc']))}={each['input']!r}: {each['msg']}" for each in listed()
    )


def build_loggers(
    config: LoggerConfig,
    folder: Path,
    description: Description,
    agenda: Agenda,
    done: int = 0,
    quiet: bool = False,
) -> list[Logger]:
    """Return the loggers of a run.

    Args:
        config: The ``logger`` group.
        folder: The run folder; ``metrics.csv`` lies directly in it.
        description: What is said of the run, for loggers that show many together.
        agenda: Has the step counters that metrics are drawn over.
        done: Iterations that a resumed run has behind it; what ``metrics.csv`` has of them is
            kept.
        quiet: Loggers print nothing.
    """
    # It flushes by the number of the step, of which only every so many are logged: by its
    # default of 100 it would never come to it before the end.
    rows = read_metrics(folder / "metrics.csv", done)
    csv_logger = CSVLogger(folder, name="", version="", flush_logs_every_n_steps=1)
    for row in rows:  # the logger begins with an empty file
        csv_logger.experiment.log_metrics(row, int(row.pop("step")))
    if rows:
        csv_logger.save()
    loggers: list[Logger] = [csv_logger]
    if config.name == "tensorboard":
        loggers.append(StageTensorBoardLogger(folder, agenda, done))
    # Of the processes of a run only the first has a run of wandb's: the others log nothing.
    if config.name == "wandb" and not getattr(rank_zero_only, "rank", 0):
        loggers.append(_wandb(config, folder, description, agenda, quiet))
    return loggers


def show_media(loggers: Sequence[Logger]) -> bool:
    """Return whether any of the loggers shows more than numbers."""
    return any(isinstance(logger, MediaLogger) for logger in loggers)


def log_evaluation(
    loggers: Sequence[FabricLogger], metrics: Mapping[str, float], iteration: int
) -> None:
    """Log what the student was measured at, for loggers beside ``metrics.csv``.

    That file has one row an iteration; the result of a run is in ``result.json``.

    Args:
        loggers: Of the run.
        metrics: By name without the group.
        iteration: After which iteration (from 0) the student was as it was measured.
    """
    for logger in loggers:
        if not isinstance(logger, CSVLogger):
            named = {f"evaluation/{name}": value for name, value in metrics.items()}
            logger.log_metrics(named, step=iteration)


def log_summary(loggers: Sequence[Logger], facts: Mapping[str, Any]) -> None:
    """Log facts of a run as a whole, where runs are compared by such."""
    for logger in loggers:
        if isinstance(logger, StageWandbLogger):
            logger.experiment.summary.update(dict(facts))


def read_metrics(path: Path, done: int) -> list[dict[str, float]]:
    """Return the whole rows of a ``metrics.csv`` before step ``done``; none without a file."""
    if not done or not path.is_file():
        return []
    kept = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            try:
                numbers = {name: float(value) for name, value in row.items() if value}
            except (TypeError, ValueError):  # cut off when the run was killed
                continue
            if "step" in numbers and numbers["step"] < done:
                kept.append(numbers)
    return kept


def finish_loggers(loggers: Sequence[Logger], succeeded: bool) -> None:
    """Flush and close, also after a failure, so that the next job starts runs of its own."""
    for logger in loggers:
        logger.finalize("success" if succeeded else "failed")
        # Of all the loggers' experiments only wandb's run has it.
        finish = getattr(getattr(logger, "experiment", None), "finish", None)
        if finish is not None:
            finish(exit_code=0 if succeeded else 1)


def _wandb(
    config: LoggerConfig, folder: Path, description: Description, agenda: Agenda, quiet: bool
) -> Logger:
    """Return an online run where there is a key and the server answers, else an offline run.

    A resumed run goes on with the wandb run that it began, whose id is in its folder.

    Raises:
        ConfigurationError: wandb does not take the key.
    """
    import wandb

    arguments: dict[str, Any] = {
        # WANDB_MODE, where the user has set it, decides by itself.
        "mode": None if wandb_key_exists() or os.environ.get("WANDB_MODE") else "offline",
        "project": config.project,
        "entity": config.entity,
        "name": description.name,
        "group": description.group,
        "tags": list(description.tags),
        "dir": str(folder),
        "id": _claim_wandb_id(folder),
        "resume": "allow",
        "config": description.settings,
    }
    # wandb's own closing summary would push the result out of sight.
    options: dict[str, Any] = {"quiet": True, "silent": quiet}
    try:
        settings = wandb.Settings(init_timeout=INIT_TIMEOUT_SECONDS, **options)
        run = wandb.init(settings=settings, **arguments)
    except wandb.errors.CommError as error:
        _log.warning(
            "wandb does not let the run online, so it is kept offline: %s", first_line(error)
        )
        settings = wandb.Settings(**options)
        run = wandb.init(settings=settings, **{**arguments, "mode": "offline"})
    except wandb.errors.UsageError as error:
        raise ConfigurationError(f"logger=wandb: {first_line(error)}") from error
    return StageWandbLogger(run, folder, agenda)


def _claim_wandb_id(folder: Path) -> str:
    """Return the id of this run's wandb run, written down before it begins.

    A run that is killed while wandb starts would begin a second one otherwise.
    """
    chosen = read_wandb_id(folder) or os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:12]
    (folder / WANDB_ID_FILE).write_text(f"{chosen}\n", encoding="utf-8")
    return chosen


def read_wandb_id(folder: Path) -> str | None:
    """Return the id of the wandb run that the run in ``folder`` began; none where it began none.

    A file that wandb did not name a run by costs no training: there is a new wandb run then.
    """
    try:
        text = (folder / WANDB_ID_FILE).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if WANDB_ID.fullmatch(text) else None
