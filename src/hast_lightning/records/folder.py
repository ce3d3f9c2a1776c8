"""The folder of a run: its files, whose it is, and what a resumed run reads from it."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]  # comes with OmegaConf

from hast_lightning.config import Config, from_saved, to_object
from hast_lightning.config.targets import refuse_untyped
from hast_lightning.errors import ConfigurationError, StorageError, first_line

try:
    import fcntl
except ModuleNotFoundError:  # of systems that lock otherwise
    fcntl = None  # type: ignore[assignment]

RESULT_FILE = "result.json"
CONFIG_FILE = "config.yaml"
ORIGIN_FILE = "origin.json"
CHECKPOINT_FILE = "last.ckpt"
SAMPLES_FILE = "samples.safetensors"
GRID_FILE = "samples.png"
METRICS_FILE = "metrics.csv"
REPORT_FILE = "report.html"
JOB_FAILURE_FILE = "job_failure.json"
"""What a job of a sweep leaves that did not come to its end."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """Command, commit and versions that made a run, as they were when it began.

    Attributes:
        command: What the user typed.
        git_commit: Commit of the source, none where it is installed.
        versions: Version of Python and of every package that can change the numbers.
        resumes: How often the run was taken up again.
    """

    command: str
    git_commit: str | None
    versions: dict[str, str]
    resumes: int = 0


def refuse_used(folder: Path) -> None:
    """Leave an earlier run as it is, also one without a result: its samples, its checkpoint.

    Raises:
        ConfigurationError: there is one in ``folder``.
    """
    for name in (RESULT_FILE, CHECKPOINT_FILE, SAMPLES_FILE, CONFIG_FILE):
        if (folder / name).exists():
            raise _used(folder, name)


def _used(folder: Path, name: str) -> ConfigurationError:
    # A run that came to its end has nothing to go on with.
    on = "" if name == RESULT_FILE else f", or go on with that run by resume={folder}"
    return ConfigurationError(
        f"hydra.run.dir={folder} already holds a run ({name}): choose another folder{on}"
    )


def was_requeued(folder: Path) -> bool:
    """Return whether SLURM started this job again after a pre-emption, and it left a run here."""
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    unfinished = (folder / CONFIG_FILE).exists() and not (folder / RESULT_FILE).exists()
    return restarts not in ("", "0") and unfinished


def drop_interrupted_steps(folder: Path) -> None:
    """Remove what Lightning's SLURM plugin saved when the signal came: the middle of a step.

    The plugin would prefer it to the run's own checkpoint, which is of a whole step.
    """
    for file in folder.glob("hpc_ckpt_*.ckpt"):
        file.unlink()


def disk_bytes(folder: Path) -> int:
    """Return what the files of a run occupy; hidden ones are gone when it ends."""
    files = (file for file in folder.rglob("*") if not file.name.startswith("."))
    return sum(file.stat().st_size for file in files if file.is_file())


def claim(folder: Path, config: Config, origin: Origin) -> None:
    """Make the folder and take it for this run alone, with its configuration and origin.

    Raises:
        ConfigurationError: another run took it first.
        StorageError: the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot be made ({error.strerror})"
        raise StorageError(f"hydra.run.dir={folder} {reason}: choose another folder") from error
    try:
        with (folder / CONFIG_FILE).open("x", encoding="utf-8") as file:
            OmegaConf.save(OmegaConf.create(asdict(config)), file)
    except FileExistsError as error:  # of a run that began in the same second
        raise _used(folder, CONFIG_FILE) from error
    except OSError as error:
        reason = f"cannot be written to ({error.strerror})"
        raise StorageError(f"hydra.run.dir={folder} {reason}: choose another folder") from error
    write_origin(folder, origin)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run for this process, until it is done with it or ends in whatever way.

    Raises:
        ConfigurationError: another process is at work on it.
    """
    path = folder / CONFIG_FILE
    if fcntl is None or not path.is_file():
        yield
        return
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(
                f"{folder}: another process is at work on this run; wait for it, or end it"
            ) from error
        except OSError as error:  # a file system without locks
            _log.debug("%s cannot be held: %s", folder, error)
        try:
            yield
        finally:
            # A process that was forked has the file open, too.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)


def write_origin(folder: Path, origin: Origin) -> None:
    """Replace the record of what made the run, in one move."""
    write_whole(folder / ORIGIN_FILE, json.dumps(asdict(origin), indent=2) + "\n")


def reopen(
    folder: Path,
    versions: Mapping[str, str],
    factory: str | None = None,
    words: Collection[str] = (),
) -> tuple[Config, Origin]:
    """Return the configuration and the origin of an unfinished run.

    Args:
        folder: The folder of the run.
        versions: The versions that are installed now; where they differ from those that the
            run began with, a warning names them.
        factory: The function that builds the user's own network, named again by whoever resumes
            the run: whoever wrote the folder must not choose what code is run.
        words: What was typed, which has to name every ``_target_`` of the run for the same reason.

    Raises:
        ConfigurationError: there is no run, or it came to its end, or its files are damaged.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise ConfigurationError(f"resume={folder}: there is no run ({CONFIG_FILE} is missing)")
    if (folder / RESULT_FILE).exists():
        raise ConfigurationError(f"resume={folder}: the run came to its end ({RESULT_FILE})")
    config, origin = _read_config(folder), _read_origin(folder)
    if config.model.factory != factory:
        raise ConfigurationError(
            f"resume={folder}: model.factory={config.model.factory} builds the network; name it "
            "again on the command line, since a file cannot have code called"
            if config.model.factory is not None
            else f"resume={folder} model.factory={factory}: the run has no network of your own"
        )
    _refuse_untyped_teachers(config, f"resume={folder}", (factory or "", *words))
    refuse_untyped(config.trainer.callbacks, f"resume={folder}: trainer.callbacks", words)
    refuse_untyped(config.logger.others, f"resume={folder}: logger.others", words)
    for name in sorted(origin.versions.keys() | versions.keys()):
        before, now = origin.versions.get(name), versions.get(name)
        if before != now:
            _log.warning("resume: %s was %s when the run began and is %s now", name, before, now)
    return config, replace(origin, resumes=origin.resumes + 1)


def _refuse_untyped_teachers(config: Config, resume: str, typed: Collection[str]) -> None:
    """Refuse to call a function for a further teacher that nobody has typed."""
    named = {name for word in typed for name in re.findall(r"[\w.:]+", word)}
    for name, factory in config.teachers_factories.items():
        if factory not in named:
            raise ConfigurationError(
                f"{resume}: teachers.{name}.factory={factory} builds a teacher; name it again on "
                f"the command line, trust=[{factory}], since a file cannot have code called"
            )


def _read_config(folder: Path) -> Config:
    path = folder / CONFIG_FILE
    try:
        saved = OmegaConf.to_container(OmegaConf.load(path))
    except (OmegaConfBaseException, YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"resume: {path} cannot be read: {first_line(error)}") from error
    try:
        return to_object(from_saved(saved))
    except (ConfigurationError, OmegaConfBaseException) as error:
        raise ConfigurationError(f"resume: {path} cannot be read: {first_line(error)}") from error


def _read_origin(folder: Path) -> Origin:
    path = folder / ORIGIN_FILE
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Origin(**{field.name: content[field.name] for field in fields(Origin)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"resume: {path} cannot be read: {error}") from error


def write_whole(path: Path, text: str) -> None:
    """Write ``text`` beside ``path`` and rename it, so that a crash leaves no half file.

    What is no text in a name is written as an escape.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
