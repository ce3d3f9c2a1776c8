"""The command line: finds the configuration, composes it with Hydra, and reports errors."""

from __future__ import annotations

import errno
import os
import re
import select
import shlex
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import hydra
from hydra import compose
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]  # comes with OmegaConf

from hast_lightning import __version__
from hast_lightning.cli import sweeps
from hast_lightning.cli.announcement import ANSWERS, SWEEP_FLAGS
from hast_lightning.cli.plain import FORBIDDEN
from hast_lightning.config import (
    Config,
    config_folder,
    foreign,
    joined_lines,
    named_modules,
    one_line,
    refuse_two_ways_of_bits,
    refuse_typed_recipe,
    register_recipes,
    register_schemas,
    spelled,
    spelled_modules,
    to_object,
    with_paths_as_texts,
)
from hast_lightning.config.choice import BEST
from hast_lightning.config.targets import refuse_untyped, targets_in
from hast_lightning.errors import (
    BROKEN_PIPE_STATUS,
    DEFECT_STATUS,
    INTERRUPTED_STATUS,
    USER_ERROR_STATUS,
    ConfigurationError,
    UserError,
)

if TYPE_CHECKING:
    from hast_lightning.records.result import Result

FULL_ERROR = "HYDRA_FULL_ERROR"
NOT_ASKED = "HAST_LIGHTNING_FULL_ERROR_NOT_ASKED"
"""Variable that says that the other one was set here, and not by the user."""
USER_ERRORS = (UserError, HydraException, OmegaConfBaseException, YAMLError)
# What Hydra lets through outside a job: an option like model=3, which is a number to it, and a
# run folder that cannot be made.
HYDRA_ERRORS = (ValueError, OSError)
FIXABLE = FORBIDDEN | {errno.ENOSPC, errno.EDQUOT}
WITH_RESUME = ("resume", "modules", "model.factory", "trust")
"""What may be said of a run that is resumed: its folder, and whose code it may run."""
HELP_FLAGS = ("-h", "--help")
HELP_TOPICS = ("groups", "keys")
"""What --help shows more of than fits on a screen."""


def run_job(composed: DictConfig) -> float | None:
    """One job: check the configuration, run it, return the objective for a sweeper.

    The objective is the top-1 accuracy where there are labels. Where there are none it is the
    negative error of the logits on images that nobody trained on: held-out samples are the
    method's own, so that a method that makes easy ones would look good.
    """
    if composed.resume is not None:
        return _objective(_resume(str(composed.resume)))
    config = to_object(composed)
    refuse_two_ways_of_bits(HydraConfig.get().overrides.task)
    if config.method.name == BEST and config.command not in ANSWERS:
        return _with_choice(config)
    return _carry_out(config)


def _with_choice(config: Config) -> float | None:
    """Carry out a command with the chosen method in place of ``best``, as if that were typed."""
    from hast_lightning.runs.best import chosen_words

    words = HydraConfig.get().overrides
    chosen = chosen_words(config, words.task)
    with read_write(cast("DictConfig", words)):
        words.task = chosen
    config = to_object(compose("config", [*words.hydra, *chosen]))
    objective = _carry_out(config)
    if config.command == "inspect":
        _estimate(config)
    return objective


def _carry_out(config: Config) -> float | None:
    if sweeps.in_sweep() and config.command in ANSWERS:
        raise ConfigurationError(
            f"command={config.command} makes no run, so a sweep would only repeat it"
        )
    if config.command in WITHOUT_RUN:
        WITHOUT_RUN[config.command](config)
        return None
    if sweeps.in_sweep():
        sweeps.check_job(config)
    return _objective(_run(config))


def _objective(result: Result | None) -> float | None:
    """Return what a sweeper maximizes; none of a run that measures nothing."""
    if result is None:
        return None
    if result.quantized_top1 is not None:
        return result.quantized_top1
    error = result.error_without_labels
    return result.teacher_agreement if error is None else -error


def _inspect(config: Config) -> None:
    from hast_lightning.runs.inspection import inspect

    inspect(config)


def _estimate(config: Config) -> None:
    from hast_lightning.runs.estimate import estimate, few_steps

    words = HydraConfig.get().overrides
    own = [word for word in words.task if word.partition("=")[0] not in ("command", "modules")]
    small = to_object(compose("config", [*words.hydra, *own, *few_steps(config)]))
    estimate(config, small)


def _predict(config: Config) -> None:
    from hast_lightning.runs.prediction import predict

    assert config.artifact is not None
    assert config.images is not None
    target = None if config.predictions is None else Path(config.predictions)
    predict(Path(config.artifact), Path(config.images), target)


def _dashboard(config: Config) -> None:
    from hast_lightning.tracking.dashboard import save_dashboard

    print(f"The dashboard is at {save_dashboard(config.logger, _composed_methods)}")


def _compare(config: Config) -> None:
    from hast_lightning.compare.command import compare

    compare(config)


def _methods(config: Config) -> None:
    from hast_lightning.compare.measured import measured_here
    from hast_lightning.runs.methods import show_methods

    show_methods(config, _composed_methods(), measured_here())


def _composed_methods() -> dict[str, Config]:
    """Compose every method, those of the user's own folders among them, with the rest as it is."""
    words = HydraConfig.get().overrides
    left_out = ("command", "method", "modules")
    others = [word for word in words.task if word.partition("=")[0] not in left_out]
    return {
        name: to_object(compose("config", [*words.hydra, *others, f"method={name}"]))
        for name in GlobalHydra.instance().config_loader().get_group_options("method")
    }


WITHOUT_RUN: dict[str, Callable[[Config], None]] = {
    "inspect": _inspect,
    "estimate": _estimate,
    "predict": _predict,
    "compare": _compare,
    "methods": _methods,
    "dashboard": _dashboard,
}
"""Commands that make no run."""


def _join_sweep(config: Config) -> None:
    """Have loggers show the jobs of a sweep together, under the name of its folder."""
    if sweeps.in_sweep():
        folder = Path(HydraConfig.get().sweep.dir)
        config.logger.group = config.logger.group or "/".join(folder.parts[-2:])
        differences = sweeps.differences()
        config.logger.tags = [*config.logger.tags, "sweep", *differences]
        name = f"{config.recipe}/{HydraConfig.get().job.num} {' '.join(differences)}".strip()
        config.logger.run_name = config.logger.run_name or name
    config.logger.tags = [*config.logger.tags, *config.tags]


def _run(config: Config) -> Result | None:
    _join_sweep(config)
    folder = Path(HydraConfig.get().runtime.output_dir)
    _require_place(folder)
    named = targets_in([config.trainer.callbacks, config.logger.others])
    code = (*config.teachers_factories.values(), *named)
    with _way_on(folder, config.model.factory, code):
        # Imported late, so that a mistyped option is refused before torch has been loaded.
        from hast_lightning.runs.pipeline import run

        return run(config, folder, _command())


@contextmanager
def _way_on(folder: Path, factory: str | None, further: Collection[str] = ()) -> Iterator[None]:
    """Note on what ends the run from outside where the run is, and how to go on with it."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as end:
        from hast_lightning.records.folder import CONFIG_FILE, RESULT_FILE

        # One that has not begun has made no folder.
        if (folder / CONFIG_FILE).exists() and not (folder / RESULT_FILE).exists():
            end.add_note(_how_to_go_on(folder, factory, further))
        raise


def _how_to_go_on(folder: Path, factory: str | None, further: Collection[str]) -> str:
    near = folder.is_relative_to(Path.cwd())
    place = os.path.relpath(folder) if near else str(folder)
    # Whose code may run is in no folder.
    words = HydraConfig.get().overrides.task
    code = [shlex.quote(word) for word in words if word.lstrip("+").startswith("modules=")]
    code += [spelled("model.factory", factory)] if factory else []
    others = sorted(set(further) - {factory})
    code += [shlex.quote(f"trust=[{','.join(others)}]")] if others else []
    command = " ".join(["python -m hast_lightning", spelled("resume", place), *code])
    return f"the run is in {place} and goes on with: {command}"


def _require_place(folder: Path) -> None:
    """Refuse a run folder that is a file, or would lie in one, before anything is loaded."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise ConfigurationError(
            f"hydra.run.dir={folder} cannot be made: {there} is a file and no folder"
        )


def _resume(folder: str) -> Result | None:
    """Go on with a run, whose configuration is in its folder and cannot be changed."""
    words = HydraConfig.get().overrides.task
    named = {key: value for key, _, value in (word.partition("=") for word in words)}
    others = [word for word in words if word.partition("=")[0] not in WITH_RESUME]
    if others:
        raise ConfigurationError(
            f"resume={folder} takes its configuration from that folder: leave out "
            f"{', '.join(others)}"
        )
    place, factory = Path(folder).expanduser(), named.get("model.factory")
    trusted = re.findall(r"[\w.:]+", named.get("trust", ""))
    with _way_on(place.absolute(), factory, trusted):
        from hast_lightning.runs.pipeline import resume

        return resume(place, factory, words)


def _command() -> str:
    """The command line of this job: what was typed, or the job's part of a sweep."""
    settings = HydraConfig.get()
    swept = sweeps.in_sweep()
    typed = [word for word in sys.argv[1:] if word != f"method={BEST}"]
    if len(typed) < len(sys.argv) - 1:
        typed = [*(word for word in settings.overrides.task if word not in typed), *typed]
    arguments = list(sweeps.own_words(settings.overrides.task)) if swept else typed
    return shlex.join(["python", "-m", "hast_lightning", *arguments])


def main() -> None:
    """Entry point of ``hast-lightning`` and ``python -m hast_lightning``.

    What a user can fix ends in one line on standard error and exit status 2; with the
    environment variable HYDRA_FULL_ERROR=1 the stack trace is shown instead.
    """
    if "--version" in sys.argv[1:]:
        # Hydra would answer with its own.
        print(f"hast-lightning {__version__}")
        return
    full_error = _have_hydra_raise()
    # argparse takes all overrides from one side of a flag.
    words = _with_help_topic(sys.argv[1:])
    sys.argv[1:] = sorted(words, key=lambda word: word not in (*SWEEP_FLAGS, *HELP_FLAGS))
    sweeps.SweepFolder.current = None
    try:
        refuse_typed_recipe(sys.argv[1:])
        modules = named_modules(sys.argv[1:])
        register_schemas(modules)
        sys.argv[1:] = with_paths_as_texts(spelled_modules(sys.argv[1:]))
        # A shell that completes a line hands it over in a variable.
        register_recipes([*sys.argv[1:], *os.environ.get("COMP_LINE", "").split()])
    except ConfigurationError as error:
        if full_error:
            raise
        print(f"hast-lightning: {one_line(error)}", file=sys.stderr)
        sys.exit(USER_ERROR_STATUS)
    refused = defective = False
    typed = list(sys.argv[1:])

    def job(composed: DictConfig) -> float | None:
        nonlocal refused, defective
        # Parallel launchers begin in a process that has not been through main.
        register_schemas(modules)
        try:
            refuse_untyped(composed.trainer.callbacks, "trainer.callbacks", typed)
            refuse_untyped(composed.logger.others, "logger.others", typed)
            return _run_recorded(composed)
        except Exception as error:
            fixable = _is_fixable(error)
            defective |= not fixable
            if full_error or not (fixable or sweeps.in_sweep()):
                raise
            if isinstance(error, sweeps.FolderNotSharedError):
                # No record reaches the command line, so Hydra has to carry it.
                raise
            # Raised, it would reach Hydra, which prints a line of its own and, of the jobs of a
            # sweep, reports only the first that failed.
            refused = True
            print(_report_of(error), file=sys.stderr)
            return None

    start = hydra.main(config_path=str(config_folder()), config_name="config", version_base="1.3")
    try:
        with _composed_once(sys.argv[1:]):
            start(job)()
    except KeyboardInterrupt as end:
        print(f"hast-lightning: interrupted{_noted(end)}", file=sys.stderr)
        sys.exit(INTERRUPTED_STATUS)
    except SystemExit as end:
        # Lightning's has no status: whoever ended the run would take it for a success.
        known = foreign(end)
        if known is None:
            raise
        print(f"hast-lightning: {known.line}{_noted(end)}", file=sys.stderr)
        sys.exit(known.status)
    except Exception as error:
        if full_error:
            _list_failures()
            raise
        sys.exit(_status_of(error, defective))
    else:
        if status := _status(refused, _list_failures()):
            sys.exit(status)


def _have_hydra_raise() -> bool:
    """Have Hydra raise where it would print a report, and return whether the user asked for that.

    What runs later in this process, and processes that it starts, find the same in their
    environment, and nobody asked them.
    """
    wanted = os.environ.get(FULL_ERROR, "0") not in ("", "0")
    wanted &= NOT_ASKED not in os.environ
    os.environ[FULL_ERROR] = "1"
    if not wanted:
        os.environ[NOT_ASKED] = "1"
    return wanted


def _with_help_topic(words: Sequence[str]) -> list[str]:
    """Return the words with a topic behind ``--help`` as Hydra's choice of a template."""
    topic = next((word for word in words if word in HELP_TOPICS), None)
    if topic is None or not set(words) & set(HELP_FLAGS):
        return list(words)
    return [*(word for word in words if word != topic), f"hydra/help=hast_lightning_{topic}"]


@contextmanager
def _composed_once(words: Sequence[str]) -> Iterator[None]:
    """Spare a command without a run that Hydra composes twice, to ask whether it is a sweep.

    That takes as long as all else that such a command does.
    """
    command = next((w.partition("=")[2] for w in words if w.startswith("command=")), "run")
    swept = any(word in SWEEP_FLAGS or word.startswith(("sweep=", "hydra")) for word in words)
    asked = Hydra.get_mode
    if command in WITHOUT_RUN and not swept:
        Hydra.get_mode = lambda *_, **__: RunMode.RUN  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = asked  # type: ignore[method-assign]


def _noted(end: BaseException) -> str:
    return "".join(f"; {note}" for note in getattr(end, "__notes__", ()))


def _status_of(error: Exception, defective: bool) -> int:
    """Print why the command ended outside of its jobs, and return its exit status.

    Args:
        error: What ended it.
        defective: A job met a defect of this package before.

    Raises:
        Exception: the error itself, where it is a defect of this package.
    """
    known = foreign(error)
    if known is not None and known.ends_alone:
        print(f"hast-lightning: {sweeps.SweepFolder.current}: {known.line}", file=sys.stderr)
        return known.status
    failed = _list_failures()
    if isinstance(error, BrokenPipeError):
        _end_where_nobody_reads()
    # A search in which every trial failed has no best one, and says so.
    in_vain = bool(failed) and type(error) is ValueError
    users = known is not None or isinstance(error, (*USER_ERRORS, *HYDRA_ERRORS))
    if not in_vain and (not users or (defective and known is None)):
        raise error
    if not in_vain:
        print(f"hast-lightning: {one_line(error, sys.argv[1:])}", file=sys.stderr)
    if known is not None and known.status != USER_ERROR_STATUS:
        return known.status
    return _status(True, failed)


def _status(refused: bool, failed: Sequence[sweeps.Failure]) -> int:
    """Return the exit status: of a defect, of something that the user can fix, or of success."""
    if any(not failure.fixable for failure in failed):
        return DEFECT_STATUS
    return USER_ERROR_STATUS if refused or failed else 0


def _end_where_nobody_reads() -> None:
    """End without a word behind ``| head``, which closes the pipe; other pipes may break, too."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if any(event & select.POLLERR for _, event in output.poll(0)):
        # Python would flush once more at the exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE_STATUS)


def _run_recorded(composed: DictConfig) -> float | None:
    """Run a job; of a sweep's, the folder tells how it ended, whichever process ran it."""
    if not sweeps.in_sweep():
        return run_job(composed)
    sweeps.begin_job()
    try:
        objective = run_job(composed)
    except Exception as error:
        fixable = _is_fixable(error)
        message = one_line(error) if fixable else f"{type(error).__name__}: {joined_lines(error)}"
        lines = None if fixable else "".join(traceback.format_exception(error)).splitlines()
        sweeps.fail_job(message, fixable, lines)
        raise
    sweeps.end_job()
    return objective


def _report_of(error: Exception) -> str:
    if _is_fixable(error):
        return f"hast-lightning: {_job_name()}{one_line(error)}"
    trace = "".join(traceback.format_exception(error)).rstrip()
    return f"{trace}\nhast-lightning: {_job_name()}failed; the other jobs go on"


def _list_failures() -> list[sweeps.Failure]:
    """Print which jobs of a sweep failed, and return them."""
    failed = sweeps.failures()
    if failed:
        print(f"hast-lightning: {sweeps.summary(failed)}", file=sys.stderr)
    return failed


def _is_fixable(error: BaseException) -> bool:
    """Return whether the user can fix it: a full disk, say, or a path that is forbidden."""
    if isinstance(error, USER_ERRORS):
        return True
    return isinstance(error, OSError) and error.errno in FIXABLE


def _job_name() -> str:
    """Which job of a sweep this is; nothing for a run that stands alone."""
    return f"job {HydraConfig.get().job.num}: " if sweeps.in_sweep() else ""
