"""One run from its first check to its last file, to be read from the top."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader

from hast_lightning.config import AUTO, FLOAT32, CallbacksConfig, Config
from hast_lightning.config.targets import made
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.data.given import GivenData
from hast_lightning.data.ticker import StepTicker
from hast_lightning.errors import ModelError
from hast_lightning.records.exports_table import exports_table
from hast_lightning.records.failure import Failure, forget_failure
from hast_lightning.records.folder import (
    CHECKPOINT_FILE,
    GRID_FILE,
    REPORT_FILE,
    RESULT_FILE,
    SAMPLES_FILE,
    Origin,
    claim,
    drop_interrupted_steps,
    held,
    refuse_used,
    reopen,
    was_requeued,
    write_origin,
)
from hast_lightning.records.grid import DRAWN_CHANNELS
from hast_lightning.records.printing import plain_console, printable
from hast_lightning.records.result import Result
from hast_lightning.records.results_table import results_table
from hast_lightning.records.versions import git_commit, versions
from hast_lightning.report import write_failed_report, write_report
from hast_lightning.runs.assembly import Run, build, prepare_torch
from hast_lightning.runs.exporting import (
    describe,
    export_student,
    raise_failures,
    require_exportable,
)
from hast_lightning.runs.logs import (
    open_loggers,
    tell_artifacts,
    tell_failure,
    tell_inputs,
    tell_result,
)
from hast_lightning.runs.model_card import CARD_FILE, model_card
from hast_lightning.runs.results import result_of
from hast_lightning.runtime.ranks import rank
from hast_lightning.runtime.trainer import (
    build_trainer,
    is_first_process,
    require_device,
)
from hast_lightning.safeguard.choice import choose
from hast_lightning.safeguard.states import StudentStates, forget_states
from hast_lightning.tracking.loggers import finish_loggers, require_logger, show_media
from hast_lightning.tracking.media import Samples, sample_pictures
from hast_lightning.training.callbacks.checkpoint import LastCheckpoint, last_whole_checkpoint
from hast_lightning.training.callbacks.evaluation import StudentEvaluation
from hast_lightning.training.callbacks.findings import SaveFindings
from hast_lightning.training.callbacks.observation import Observation
from hast_lightning.training.callbacks.progress import StageProgressBar
from hast_lightning.training.callbacks.samples import SaveSamples
from hast_lightning.training.callbacks.timing import StageTimer

_log = logging.getLogger(__name__)


def run(config: Config, folder: Path, command: str) -> Result | None:
    """Carry out a run and leave everything in its folder.

    Args:
        config: A checked configuration.
        folder: The run folder; made where it does not exist.
        command: What the user typed, for the report.

    Returns:
        What ``result.json`` holds; none where nothing is evaluated.

    Raises:
        UserError: something handed in is wrong, or training diverged.
    """
    if was_requeued(folder):
        typed = (command, *config.teachers_factories.values())
        return resume(folder, config.model.factory, typed)
    return carry_out(config, folder, command)[1]


def carry_out(
    config: Config,
    folder: Path,
    command: str,
    network: PretrainedNetwork | None = None,
    data: GivenData | None = None,
    wanted: Collection[str] = (),
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
) -> tuple[Run, Result | None]:
    """Carry out a run and return it with its parts, beside the result.

    Args:
        config: A checked configuration.
        folder: The run folder; made where it does not exist.
        command: What makes the result again, for the report.
        network: In place of the one that ``config.model`` describes.
        data: Evaluation data in place of those that ``config.data`` describes.
        wanted: Formats that the caller may write in the end, beside those that the run writes.
        callbacks: Objects of the user's, beside those that ``config.trainer`` names.
        loggers: Objects of the user's, beside those that ``config.logger`` names.

    Raises:
        UserError: as :func:`run`.
    """
    first = is_first_process()
    if first:
        refuse_used(folder)
    _require_surroundings(config)
    made = build(config, folder, Origin(command, git_commit(), versions()), network, data)
    require_exportable(made, wanted)
    _make_objects(made, callbacks, loggers)
    if first:
        claim(folder, config, made.origin)
    with _held(folder):
        return made, _execute(made, None)


def resume(folder: Path, factory: str | None = None, words: Collection[str] = ()) -> Result | None:
    """Go on with the run in ``folder`` where its last checkpoint stands.

    Without a checkpoint it begins anew, in the same folder and with the same numbers.

    Args:
        folder: The run folder.
        factory: The function that builds the user's own network, where the run has one.
        words: What the user typed: code that the run names counts where these name it, too.

    Raises:
        UserError: the folder holds no unfinished run, its checkpoints are damaged or belong to
            another network, or whatever :func:`run` raises.
    """
    with _held(folder):
        return _resume(folder, factory, words)


def _held(folder: Path) -> AbstractContextManager[None]:
    """Keep other processes off a run; those that were started for it are none of them."""
    return held(folder) if is_first_process() else nullcontext()


def _resume(folder: Path, factory: str | None, words: Collection[str]) -> Result | None:
    config, origin = reopen(folder, versions(), factory, words)
    _require_surroundings(config)
    checkpoint = last_whole_checkpoint(folder / CHECKPOINT_FILE)
    made = build(config, folder, origin)
    require_exportable(made)
    _make_objects(made)
    start = None if checkpoint is None else _start_at(checkpoint, made.network)
    if is_first_process():
        drop_interrupted_steps(folder)
        forget_failure(folder)
        (folder / REPORT_FILE).unlink(missing_ok=True)
        write_origin(folder, origin)
    return _execute(made, start)


def _make_objects(
    run: Run, callbacks: Sequence[Callback] = (), loggers: Sequence[Logger] = ()
) -> None:
    """Make what the configuration names, which may be refused, while there is no folder yet."""
    trainer, logger = run.config.trainer, run.config.logger
    run.callbacks = made([*trainer.callbacks, *callbacks], "trainer.callbacks", Callback)
    run.loggers = made([*logger.others, *loggers], "logger.others", Logger)


def _require_surroundings(config: Config) -> None:
    """Prepare torch, and refuse a device or a logger that is not there."""
    asked = config.trainer.precision
    prepare_torch(config)
    precision = config.trainer.precision
    if asked == AUTO and precision != FLOAT32 and is_first_process():
        line = f"trainer.precision=auto: {precision}; trainer.precision={FLOAT32} turns it off"
        plain_console().print(line, soft_wrap=True)
    require_device(config.trainer)
    require_logger(config.logger)


@dataclass(frozen=True)
class Start:
    """The place where a resumed run begins.

    Attributes:
        checkpoint: The file.
        iteration: Iterations that it has behind it.
    """

    checkpoint: Path
    iteration: int


def _start_at(checkpoint: Path, network: PretrainedNetwork) -> Start:
    """Check that a checkpoint belongs to the teacher, which it does not hold itself.

    Raises:
        ModelError: it was made with other weights.
    """
    content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    if content["teacher_checksum"] != network.teaching_checksum:
        raise ModelError(
            f"the checkpoint {checkpoint} was made with other weights of {network.name}: SHA-256 "
            f"{content['teacher_checksum'][:12]}..., not {network.teaching_checksum[:12]}..."
        )
    return Start(checkpoint, int(content["iteration"]))


def _execute(run: Run, start: Start | None) -> Result | None:
    """Go through a run that was checked; its loggers are closed whatever happens."""
    loggers = open_loggers(run, 0 if start is None else start.iteration)
    succeeded = False
    try:
        tell_inputs(run, loggers)
        result = _train_and_measure(run, loggers, start)
        tell_artifacts(run, loggers, result)
        succeeded = True
    except BaseException as error:
        tell_failure(run, loggers, _record_failure(run, error))
        raise
    finally:
        finish_loggers(loggers, succeeded)
    return result


def _train_and_measure(run: Run, loggers: list[Logger], start: Start | None) -> Result | None:
    """Go through all stages, measure the last step, and leave result, exports and report."""
    interval = run.config.callbacks.evaluate_every_n_steps
    timer, states = StageTimer(), StudentStates(run.folder, run.config.safeguard.images)
    on_the_way = StudentEvaluation(run.evaluate, interval, run.data is not None)
    evaluated = run.config.evaluate and run.config.trains
    fit(run, loggers, [timer, states, *([on_the_way] if evaluated else [])], start)
    result = _measure(run, timer, states, on_the_way) if evaluated else None
    failures: list[Exception] = []
    if result is not None and rank() == 0:
        # Before the result is written: until then a run that is stopped can be resumed.
        records, failures = export_student(run)
        result = replace(result, exports=records)
        result.write(run.folder / RESULT_FILE)
        _write_card(run, result)
    if rank() == 0:
        forget_states(run.folder)
    if result is not None:
        tell_result(run, loggers, result)
    # Last: nothing that goes wrong with a picture or a table may cost the result.
    if run.config.report and rank() == 0:
        _report(run, result)
    raise_failures(failures)
    return result


def fit(run: Run, loggers: list[Logger], callbacks: list[Callback], start: Start | None) -> None:
    """Go through all stages: one batch of the trainer is one iteration."""
    config, module = run.config, run.module
    watched = config.callbacks.media_every_n_steps > 0 and show_media(loggers)
    # What is shown are samples with their classes.
    watched = watched and not run.network.regresses
    checkpoints = _checkpoints(config.callbacks, run.folder)
    callbacks = [
        *callbacks,
        *([Observation(config.callbacks, run.network)] if watched else []),
        checkpoints,
        SaveSamples(module.save_samples, run.folder / SAMPLES_FILE, config.main_source),
        SaveFindings(module.found_files, run.folder),
        *([StageProgressBar()] if config.callbacks.progress else []),
        # Made before; of a run that is only timed they are not.
        *(run.callbacks or made(config.trainer.callbacks, "trainer.callbacks", Callback)),
    ]
    trainer = build_trainer(config.trainer, loggers, callbacks, run.folder)
    ticker = StepTicker(start.iteration if start else 0, module.agenda.iterations)
    checkpoint = start.checkpoint if start else None
    try:
        with checkpoints.interruption.awaited():
            trainer.fit(
                module, DataLoader(ticker, batch_size=None), ckpt_path=checkpoint, weights_only=True
            )
    except SystemExit as end:
        # What the trainer makes of an interrupt; the jobs of a sweep must end with this one.
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from end
        raise
    # The trainer leaves the module on the CPU; what is measured in the end runs, as all the
    # rest, on the device that the result names.
    module.to(trainer.strategy.root_device)


def _checkpoints(options: CallbacksConfig, folder: Path) -> LastCheckpoint:
    return LastCheckpoint(
        folder / CHECKPOINT_FILE,
        options.checkpoint_every_n_steps,
        options.checkpoint_every_n_minutes,
        options.checkpoints_kept,
    )


def _measure(
    run: Run, timer: StageTimer, states: StudentStates, on_the_way: StudentEvaluation
) -> Result:
    """Measure the student after the last step, and the one that is handed back if it is another.

    From then on the module has the latter: what is exported, and returned to Python.
    """
    start = time.perf_counter()
    # Held-out samples may have become others since.
    calibrated = on_the_way.calibrated if run.data is not None else None
    choice = choose(run.module, run.folder, run.config.safeguard, run.evaluate, calibrated)
    if choice.warning and rank() == 0:
        _log.warning("%s", choice.warning)
    seconds = {**timer.seconds, "evaluation": time.perf_counter() - start}
    return result_of(run, choice, states.statistics, on_the_way, seconds)


def _write_card(run: Run, result: Result) -> None:
    """Leave a model card beside the files of the student, where there are some."""
    if result.exports:
        card = model_card(describe(run), result, run.config.model.license)
        (run.folder / CARD_FILE).write_text(printable(card), encoding="utf-8")


def _report(run: Run, result: Result | None) -> None:
    """Leave a picture of the samples and a page, and show the table where there is a result."""
    _save_grid(run)
    write_report(run, result)
    if result is not None:
        plain_console().print(results_table(result))
        if result.exports:
            plain_console().print(exports_table(result.exports))
    plain_console().print(printable(f"Everything is in {run.folder}"), soft_wrap=True)


@torch.no_grad()
def _save_grid(run: Run) -> None:
    """Leave a picture of samples with label, the teacher's answer and difficulty, if it can be."""
    shape = run.network.input_shape
    if len(shape) != 3 or shape[0] not in DRAWN_CHANNELS or run.network.regresses:
        return
    batch = run.module.source.sample(run.config.callbacks.grid_images)
    logits = run.module.teacher(batch.inputs)
    labels = logits.argmax(dim=1) if batch.labels is None else batch.labels
    samples = Samples(batch.inputs, labels, logits)
    for picture in sample_pictures(samples, run.network).values():
        picture.save(run.folder / GRID_FILE, format="PNG")


def _record_failure(run: Run, error: BaseException) -> Failure:
    """Leave in the run folder where and why the run ended too early, and return the same."""
    module, agenda = run.module, run.module.agenda
    progress = agenda.progress(min(module.iteration, agenda.iterations - 1))
    failure = Failure.of(error, progress, module.iteration, run.folder / CHECKPOINT_FILE)
    failure.write(run.folder)
    if run.config.report and rank() == 0:
        write_failed_report(run)
    return failure
