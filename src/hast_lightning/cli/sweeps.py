"""Jobs of a sweep: each in its folder, on one device, and none able to take the others down.

A launcher may start a job in a process of its own, on this machine or another one. What goes
wrong there is therefore written to the job's folder, where whoever started the sweep reads it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from hast_lightning.config import Config, config_folder
from hast_lightning.config.compare import CompareConfig
from hast_lightning.config.literals import literal
from hast_lightning.errors import ConfigurationError
from hast_lightning.records.folder import JOB_FAILURE_FILE, RESULT_FILE, write_whole

DEVICES = "CUDA_VISIBLE_DEVICES"
# What joblib's processes are called, in the order in which they were started.
WORKER = re.compile(r"LokyProcess-(\d+)")
# Where a sweep was started: conf/hydra/launcher/ray_cluster.yaml tells it to the workers.
STARTED_IN = "HAST_LIGHTNING_STARTED_IN"
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


class FolderNotSharedError(ConfigurationError):
    """The machine of a job does not have the folder where the sweep was started.

    What happens to the job cannot be written where the sweep would read it.
    """


@dataclass(frozen=True)
class Failure:
    """A job that did not come to its end.

    Attributes:
        job: Its number in the sweep.
        overrides: What it was started with.
        message: What went wrong, in one line.
        fixable: The user can fix it; else it is a defect of this package.
        traceback: Lines of the stack trace of a defect.
    """

    job: int
    overrides: list[str]
    message: str = "ended without a word: killed, or out of memory"
    fixable: bool = False
    traceback: list[str] | None = None

    def write(self, folder: Path) -> None:
        """Leave it in the folder of the job, in one move."""
        write_whole(folder / JOB_FAILURE_FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Failure | None:
        """What :meth:`write` wrote; none where the file is something else."""
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{field.name: content[field.name] for field in fields(cls)})
        except (OSError, ValueError, KeyError, TypeError):
            return None


class SweepFolder(Callback):
    """Hydra's callback that keeps all jobs in one folder and tells the command line where it is.

    The folder's name holds the recipe, which the jobs may differ in, and the time; and Hydra does
    not return it.
    """

    current: ClassVar[Path | None] = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Settle on the folder, and forget what went wrong in an earlier sweep there."""
        folder = str(config.hydra.sweep.dir)
        SweepFolder.current = Path(folder).absolute()
        with read_write(config.hydra.overrides), open_dict(config.hydra.overrides):
            # Each job composes its configuration anew, of these words and its own.
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={literal(folder)}")
        for file in SweepFolder.current.rglob(JOB_FAILURE_FILE):
            file.unlink()

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Compare the methods of a sweep over several, as ``command=compare`` does."""
        assert SweepFolder.current is not None
        place = SweepFolder.current
        done = [json.loads(file.read_text()) for file in place.rglob(RESULT_FILE)]
        if len({result["method"] for result in done}) > 1:
            # Imported late: most sweeps need no plots.
            from hast_lightning.compare.command import compare_runs

            compare_runs([place], CompareConfig(folder=str(place / "comparison")))


def in_sweep() -> bool:
    """Whether this job is one of many."""
    return HydraConfig.get().mode is RunMode.MULTIRUN


def job_folder() -> Path:
    """The folder of this job."""
    return Path(HydraConfig.get().runtime.output_dir)


def enter_folder() -> None:
    """Work where the sweep was started: a worker of Ray begins where its cluster was started.

    Without that folder it stays where it is, and its jobs are refused by :func:`begin_job`: a
    worker that fails here would be started again and again.
    """
    with suppress(OSError):
        os.chdir(os.environ[STARTED_IN])


def differences() -> list[str]:
    """What this job was given that others of the sweep were not, as ``hardness.enabled=False``."""
    swept = _swept_keys()
    given = [text.lstrip("+").partition("=") for text in HydraConfig.get().overrides.task]
    return [f"{'.'.join(key.split('.')[-2:])}={value}" for key, _, value in given if key in swept]


def _swept_keys() -> set[str]:
    """The keys of a preset or a search, and those that were typed with several values.

    A job is told its own values alone; the sweeper leaves what was typed in the sweep's folder.
    """
    settings = HydraConfig.get()
    found = {key.lstrip("+") for key in settings.sweeper.get("params") or {}}
    file = Path(settings.sweep.dir) / "multirun.yaml"
    if file.is_file():
        typed = OmegaConf.load(file).hydra.overrides.task
        parsed = OverridesParser.create().parse_overrides(list(typed))
        found |= {override.key_or_group for override in parsed if override.is_sweep_override()}
    return found


def begin_job() -> None:
    """Give a job its device, and leave a record that only a job which ends can take back.

    Raises:
        FolderNotSharedError: the job is on a machine that does not have the folder of the sweep.
    """
    _check_folder()
    take_own_device()
    _record()


def end_job() -> None:
    """The job came to its end: there is no failure to tell of."""
    if _writes():
        (job_folder() / JOB_FAILURE_FILE).unlink(missing_ok=True)


def fail_job(message: str, fixable: bool, traceback: Sequence[str] | None) -> None:
    """The job did not come to its end, for the reason given."""
    _record(message=message, fixable=fixable, traceback=traceback and list(traceback))


def _check_folder() -> None:
    """Refuse a job that would take relative paths, its own folder among them, for others."""
    settings = HydraConfig.get()
    wanted = Path(settings.runtime.cwd)
    is_there = wanted.is_dir() and (settings.job.chdir or wanted.samefile(Path.cwd()))
    if not is_there:
        raise FolderNotSharedError(
            f"{wanted}: the sweep was started there, but {platform.node()} has no such folder: "
            "the machines of a cluster have to share it"
        )


def _record(**reason: Any) -> None:
    if _writes():
        settings = HydraConfig.get()
        Failure(settings.job.num, list(settings.overrides.task), **reason).write(job_folder())


def _writes() -> bool:
    """Whether this process speaks for the job, which on SLURM may have several."""
    return os.environ.get("SLURM_PROCID", "0") == "0"


def failures() -> list[Failure]:
    """The jobs of the sweep that failed, in their order."""
    folder = SweepFolder.current
    found = [] if folder is None else map(Failure.read, folder.rglob(JOB_FAILURE_FILE))
    return sorted(filter(None, found), key=lambda failure: failure.job)


def summary(failed: Sequence[Failure]) -> str:
    """The list of the failed jobs, a line each."""
    word = "job" if len(failed) == 1 else "jobs"
    lines = [f"{len(failed)} {word} of the sweep in {SweepFolder.current} failed:"]
    for failure in failed:
        started = " ".join(failure.overrides)
        trace = f" (stack trace in its {JOB_FAILURE_FILE})" if failure.traceback else ""
        lines.append(f"  job {failure.job} [{started}]: {failure.message}{trace}")
    return "\n".join(lines)


def take_own_device() -> None:
    """In a process that joblib started, see one CUDA device alone, another in each process.

    All of them would take the first otherwise. A process keeps its device for all its jobs,
    since CUDA looks at the variable only once. SLURM and Ray assign devices themselves.
    """
    worker = WORKER.match(multiprocessing.current_process().name)
    if worker is None:
        return
    devices = visible_devices()
    if len(devices) > 1:
        os.environ[DEVICES] = devices[(int(worker[1]) - 1) % len(devices)]


def visible_devices() -> list[str]:
    """Names of the CUDA devices that this process may use."""
    if (named := os.environ.get(DEVICES)) is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def own_words(words: Iterable[str]) -> Iterator[str]:
    """The words of a job without the sweep that it is part of: they start this job alone.

    Args:
        words: Of the job, as Hydra has them: those of the whole sweep and its own.

    Yields:
        In place of ``sweep=name`` what the sweep sets in all of its jobs, such as ``data=none``.
    """
    for word in words:
        key, _, name = word.lstrip("+").partition("=")
        if key != "sweep":
            yield word
            continue
        path = config_folder() / "sweep" / f"{name}.yaml"
        content: Any = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else {}
        for entry in content.get("defaults", []):
            for group, option in entry.items() if isinstance(entry, dict) else ():
                chosen = str(group).removeprefix("override ").removeprefix("/")
                if not chosen.startswith("hydra/"):
                    yield f"{chosen}={option}"


def check_job(config: Config) -> None:
    """Refuse what a job of a sweep cannot do.

    Raises:
        ConfigurationError: it asks for several devices outside SLURM, or a search would choose
            by the labels of evaluation data.
    """
    trainer = config.trainer
    if trainer.devices * trainer.num_nodes > 1 and "SLURM_JOB_ID" not in os.environ:
        raise ConfigurationError(
            f"trainer.devices={trainer.devices} trainer.num_nodes={trainer.num_nodes}: a job of "
            "a sweep has one device; only hydra/launcher=submitit_slurm with "
            "hydra.launcher.tasks_per_node starts several processes a job"
        )
    searches = HydraConfig.get().sweeper.get("_target_") != BASIC_SWEEPER
    if searches and config.data.source != "none":
        raise ConfigurationError(
            f"data.source={config.data.source}: a search would choose by the labels of the "
            "evaluation data; leave it data=none, which measures agreement with the teacher on "
            "held-out synthetic images"
        )
