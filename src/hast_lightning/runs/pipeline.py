"""One run on one page: load, synthesize, calibrate, distill, evaluate, report."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from rich.console import Console
from torch.utils.data import DataLoader

from hast_lightning.config import CallbacksConfig, Config
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.data.given import GivenData
from hast_lightning.data.ticker import StepTicker
from hast_lightning.errors import ModelError
from hast_lightning.quantization.size import float_bytes, quantized_bytes
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
    disk_bytes,
    drop_interrupted_steps,
    refuse_used,
    reopen,
    was_requeued,
    write_origin,
)
from hast_lightning.records.grid import save_grid
from hast_lightning.records.result import Result
from hast_lightning.records.results_table import results_table
from hast_lightning.records.versions import device_name, git_commit, peak_memory_bytes, versions
from hast_lightning.report import write_failed_report, write_report
from hast_lightning.runs.assembly import Run, build, prepare_torch
from hast_lightning.runs.exporting import export_student, raise_failures, require_exportable
from hast_lightning.runtime.ranks import rank
from hast_lightning.runtime.trainer import build_trainer, is_first_process, require_device
from hast_lightning.terms.cross_entropy import difficulty
from hast_lightning.tracking.artifacts import log_artifacts, log_inputs
from hast_lightning.tracking.facts import describe
from hast_lightning.tracking.loggers import (
    build_loggers,
    finish_loggers,
    log_evaluation,
    log_summary,
    require_logger,
    show_media,
)
from hast_lightning.training.callbacks.checkpoint import LastCheckpoint, last_whole_checkpoint
from hast_lightning.training.callbacks.evaluation import StudentEvaluation
from hast_lightning.training.callbacks.observation import Observation
from hast_lightning.training.callbacks.progress import StageProgressBar
from hast_lightning.training.callbacks.samples import SaveSamples
from hast_lightning.training.callbacks.timing import StageTimer
from hast_lightning.training.evaluation import Evaluation

_log = logging.getLogger(__name__)


def run(config: Config, folder: Path, command: str) -> Result | None:
    """Carry out the agenda of ``config`` and leave everything in ``folder``.

    Args:
        config: A checked configuration.
        folder: The run folder; made where it does not exist.
        command: What the user typed, for the report.

    Returns:
        What ``result.json`` holds; none where the agenda has no ``evaluate``.

    Raises:
        UserError: something handed in is wrong, or training diverged.
    """
    if was_requeued(folder):
        return resume(folder, config.model.factory)
    return carry_out(config, folder, command)[1]


def carry_out(
    config: Config,
    folder: Path,
    command: str,
    network: PretrainedNetwork | None = None,
    data: GivenData | None = None,
    wanted: Collection[str] = (),
) -> tuple[Run, Result | None]:
    """As :func:`run`, with the parts of the run beside its result.

    Args:
        config: A checked configuration.
        folder: The run folder; made where it does not exist.
        command: What makes the result again, for the report.
        network: In place of the one that ``config.model`` describes.
        data: Evaluation data in place of those that ``config.data`` describes.
        wanted: Formats that the caller may write in the end, beside those that the run writes.

    Raises:
        UserError: as :func:`run`.
    """
    first = is_first_process()
    if first:
        refuse_used(folder)
    prepare_torch(config)
    require_device(config.trainer)
    require_logger(config.logger)
    prepared = build(config, folder, Origin(command, git_commit(), versions()), network, data)
    require_exportable(prepared, wanted)
    if first:
        claim(folder, config, prepared.origin)
    return prepared, _execute(prepared, None)


def resume(folder: Path, factory: str | None = None) -> Result | None:
    """Go on with the run in ``folder`` where its last checkpoint stands.

    Without a checkpoint it begins anew, in the same folder and with the same numbers.

    Args:
        folder: The run folder.
        factory: The function that builds the user's own network, where the run has one.

    Raises:
        UserError: the folder holds no unfinished run, its checkpoints are damaged or belong to
            another network, or whatever :func:`run` raises.
    """
    config, origin = reopen(folder, versions(), factory)
    prepare_torch(config)
    require_device(config.trainer)
    require_logger(config.logger)
    checkpoint = last_whole_checkpoint(folder / CHECKPOINT_FILE)
    prepared = build(config, folder, origin)
    require_exportable(prepared)
    start = None if checkpoint is None else _start_of(checkpoint, prepared.network)
    if is_first_process():
        drop_interrupted_steps(folder)
        forget_failure(folder)
        (folder / REPORT_FILE).unlink(missing_ok=True)
        write_origin(folder, origin)
    return _execute(prepared, start)


@dataclass(frozen=True)
class Start:
    """Where a resumed run begins: the checkpoint, and how many iterations it has behind it."""

    checkpoint: Path
    iteration: int


def _start_of(checkpoint: Path, network: PretrainedNetwork) -> Start:
    """Check that a checkpoint belongs to the teacher, which it does not hold itself.

    Raises:
        ModelError: it was made with other weights.
    """
    content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    if content["teacher_checksum"] != network.checksum:
        raise ModelError(
            f"the checkpoint {checkpoint} was made with other weights of {network.name}: SHA-256 "
            f"{content['teacher_checksum'][:12]}..., not {network.checksum[:12]}..."
        )
    return Start(checkpoint, int(content["iteration"]))


def _execute(run: Run, start: Start | None) -> Result | None:
    """Train, evaluate and report; the loggers are closed whatever happens."""
    done = 0 if start is None else start.iteration
    config = run.config
    described = describe(config, run.folder, asdict(run.origin), run.network.checksum)
    quiet = not config.callbacks.progress
    loggers = build_loggers(config.logger, run.folder, described, run.module.agenda, done, quiet)
    succeeded = False
    try:
        _log_inputs(run, loggers)
        result = _carry_out(run, loggers, start)
        _log_artifacts(run, loggers, result)
        succeeded = True
    except BaseException as error:
        _log_failure(run, loggers, _leave_word(run, error))
        raise
    finally:
        finish_loggers(loggers, succeeded)
    return result


def _leave_word(run: Run, error: BaseException) -> Failure:
    """Say in the run folder where and why the run ended too early; returns what was said."""
    module = run.module
    checkpoint = run.folder / CHECKPOINT_FILE
    agenda = module.agenda
    progress = agenda.progress(min(module.iteration, agenda.iterations - 1))
    failure = Failure.of(error, progress, module.iteration, checkpoint)
    failure.write(run.folder)
    if run.config.report and rank() == 0:
        write_failed_report(run)
    return failure


def _log_failure(run: Run, loggers: list[Logger], failure: Failure) -> None:
    """What a run that ended too early has made all the same, and why it ended."""
    try:
        log_summary(loggers, {"failure": f"{failure.kind}: {failure.reason}"})
        _log_artifacts(run, loggers, None)
    # Whatever goes wrong with a logger must not hide the error itself.
    except Exception as other:
        _log.warning("the loggers were not told of the failure: %s", other)


def _carry_out(run: Run, loggers: list[Logger], start: Start | None) -> Result | None:
    timer = StageTimer()
    interval = run.config.callbacks.evaluate_every_n_steps
    student_evaluation = StudentEvaluation(run.evaluate, interval, run.data is not None)
    evaluated = run.config.evaluate and run.config.trains
    fit(run, loggers, [timer, *([student_evaluation] if evaluated else [])], start)
    result = _evaluate_finally(run, timer, student_evaluation) if evaluated else None
    failures: list[Exception] = []
    if result is not None and rank() == 0:
        # Before the result is written: until then a run that is stopped can be resumed.
        records, failures = export_student(run)
        result = replace(result, exports=records)
        result.write(run.folder / RESULT_FILE)
    if result is not None:
        _log_result(run, loggers, result)
    # Last: nothing that goes wrong with a picture or a table may cost the result.
    if run.config.report and rank() == 0:
        _report(run, result)
    raise_failures(failures)
    return result


def _evaluate_finally(run: Run, timer: StageTimer, on_the_way: StudentEvaluation) -> Result:
    """Measure the last step."""
    start = time.perf_counter()
    final = run.evaluate()
    assert final is not None
    seconds = {**timer.seconds, "evaluation": time.perf_counter() - start}
    return _result(run, final, on_the_way, seconds)


def _log_result(run: Run, loggers: list[Logger], result: Result) -> None:
    """The student after its last step, where that was not logged on the way, and the result."""
    interval = run.config.callbacks.evaluate_every_n_steps
    if not interval or result.student_steps % interval:
        metrics = {"agreement": result.teacher_agreement}
        if result.quantized_top1 is not None:
            metrics["student_top1"] = result.quantized_top1
        log_evaluation(loggers, metrics, run.module.iteration - 1)
    facts = {name: value for name, value in asdict(result).items() if value is not None}
    # A run that was taken up again goes on in a logger's run that may say why it ended before.
    overcome = {"failure": None} if run.origin.resumes else {}
    log_summary(loggers, {"result": facts, **overcome})


def _log_inputs(run: Run, loggers: list[Logger]) -> None:
    """What the run goes on from, where a logger draws lineage."""
    loaded = run.config.sources[run.config.main_source].load
    given = (loaded, run.config.model.checkpoint)
    samples, checkpoint = (None if path is None else Path(path) for path in given)
    if run.config.logger.artifacts:
        log_inputs(loggers, samples, checkpoint, run.network.checksum)


def _log_artifacts(run: Run, loggers: list[Logger], result: Result | None) -> None:
    """What the run made, where a logger keeps it."""
    if run.config.logger.artifacts:
        facts = {} if result is None else asdict(result)
        log_artifacts(loggers, run.folder, SAMPLES_FILE, run.config.recipe, facts)


def _report(run: Run, result: Result | None) -> None:
    """Leave a picture of the samples and a page, and show the table where there is a result."""
    _save_grid(run)
    write_report(run, result)
    if result is not None:
        Console().print(results_table(result))
        if result.exports:
            Console().print(exports_table(result.exports))
    Console().print(f"Everything is in {run.folder}", soft_wrap=True)


def fit(run: Run, loggers: list[Logger], callbacks: list[Callback], start: Start | None) -> None:
    """Go through the schedule: one batch of the trainer is one iteration of it."""
    config = run.config
    module = run.module
    watched = config.callbacks.media_every_n_steps > 0 and show_media(loggers)
    callbacks = [
        *callbacks,
        *([Observation(config.callbacks, run.network.mean, run.network.std)] if watched else []),
        _checkpoints(config.callbacks, run.folder),
        SaveSamples(module.save_samples, run.folder / SAMPLES_FILE, config.main_source),
        *([StageProgressBar()] if config.callbacks.progress else []),
    ]
    trainer = build_trainer(config.trainer, loggers, callbacks, run.folder)
    ticker = StepTicker(start.iteration if start else 0, module.agenda.iterations)
    checkpoint = start.checkpoint if start else None
    try:
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


@torch.no_grad()
def _save_grid(run: Run) -> None:
    """A picture of samples: label, the teacher's opinion, difficulty."""
    batch = run.module.source.sample(run.config.callbacks.grid_images)
    logits = run.module.teacher(batch.inputs)
    answers = logits.argmax(dim=1)
    labels = answers if batch.labels is None else batch.labels
    save_grid(
        run.folder / GRID_FILE,
        batch.inputs,
        labels,
        difficulty(logits, labels),
        run.network.mean,
        run.network.std,
        answers,
    )


def _kind(run: Run) -> str:
    """Return what the samples that the student learns from are called."""
    return "synthetic" if run.module.source.synthetic else "own"


def _result(
    run: Run,
    final: Evaluation,
    student_evaluation: StudentEvaluation,
    seconds: dict[str, float],
) -> Result:
    config, module = run.config, run.module
    labelled = run.data is not None
    calibrated = student_evaluation.calibrated
    teacher_bytes = float_bytes(run.network.network)
    return Result(
        recipe=config.recipe,
        seed=config.seed,
        model=run.network.name,
        model_checksum=run.network.checksum,
        weight_bits=config.quantizer.weight_bits,
        activation_bits=config.quantizer.activation_bits,
        teacher_top1=final.teacher_top1 if labelled else None,
        calibrated_top1=calibrated.student_top1 if labelled and calibrated else None,
        quantized_top1=final.student_top1 if labelled else None,
        teacher_agreement=final.agreement,
        agreement_on="evaluation images" if labelled else f"held-out {_kind(run)} images",
        calibrated_agreement=calibrated.agreement if calibrated else None,
        evaluated_images=final.images,
        method=config.method.name,
        budget=config.schedule.name,
        steps_by_stage=module.agenda.steps(module.iteration),
        student_steps=module.agenda.student_steps(module.iteration),
        seconds_by_stage=seconds,
        peak_memory_bytes=peak_memory_bytes(module.device),
        disk_bytes=disk_bytes(run.folder),
        device=device_name(module.device),
        versions=run.origin.versions,
        teacher_bytes=teacher_bytes,
        quantized_bytes=quantized_bytes(module.student, teacher_bytes),
        best_on_test_top1=student_evaluation.best,
        status="complete",
        resumes=run.origin.resumes,
        git_commit=run.origin.git_commit,
        command=run.origin.command,
    )
