"""What the loggers of a run are told beside the numbers of its steps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lightning.pytorch.loggers import Logger

from hast_lightning.records.failure import Failure
from hast_lightning.records.result import Result
from hast_lightning.runs.assembly import Run
from hast_lightning.tracking.artifacts import log_artifacts, log_inputs
from hast_lightning.tracking.facts import describe
from hast_lightning.tracking.loggers import build_loggers, log_evaluation, log_summary

_log = logging.getLogger(__name__)


def open_loggers(run: Run, done: int) -> list[Logger]:
    """Return the loggers of a run: its own, and those that were made for it.

    Args:
        run: The run.
        done: Iterations that it has behind it.
    """
    config, agenda = run.config, run.module.agenda
    described = describe(config, run.folder, asdict(run.origin), run.network.checksum)
    quiet = not config.callbacks.progress
    own = build_loggers(config.logger, run.folder, described, agenda, done, quiet)
    return [*own, *run.loggers]


def tell_inputs(run: Run, loggers: Sequence[Logger]) -> None:
    """Log the files that the run goes on from, where a logger draws lineage."""
    loaded = run.config.sources[run.config.main_source].load
    given = (loaded, run.config.model.checkpoint)
    samples, checkpoint = (None if path is None else Path(path) for path in given)
    if run.config.logger.artifacts:
        log_inputs(loggers, samples, checkpoint, run.network.checksum)


def tell_result(run: Run, loggers: Sequence[Logger], result: Result) -> None:
    """Log the student after its last step, where that was not done on the way, and the result."""
    interval = run.config.callbacks.evaluate_every_n_steps
    if not interval or run.module.progress.step % interval:
        known = {
            "agreement": result.teacher_agreement,
            "error": result.output_error,
            "student_perplexity": result.quantized_perplexity,
            "student_top1": result.quantized_top1,
        }
        metrics = {name: value for name, value in known.items() if value is not None}
        log_evaluation(loggers, metrics, run.module.iteration - 1)
    facts = {name: value for name, value in asdict(result).items() if value is not None}
    # A run that was taken up again goes on in a logger's run that may say why it ended before.
    overcome = {"failure": None} if run.origin.resumes else {}
    log_summary(loggers, {"result": facts, **overcome})


def tell_artifacts(run: Run, loggers: Sequence[Logger], result: Result | None) -> None:
    """Log the files that the run made, where a logger keeps them."""
    if run.config.logger.artifacts:
        facts = {} if result is None else asdict(result)
        log_artifacts(loggers, run.folder, run.config.recipe, facts)


def tell_failure(run: Run, loggers: Sequence[Logger], failure: Failure) -> None:
    """Log why a run ended too early, and what it has made all the same."""
    try:
        log_summary(loggers, {"failure": f"{failure.kind}: {failure.reason}"})
        tell_artifacts(run, loggers, None)
    # Whatever goes wrong with a logger must not hide the error itself.
    except Exception as other:
        _log.warning("the loggers were not told of the failure: %s", other)
