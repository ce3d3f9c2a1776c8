"""One run on one page: load, synthesize, calibrate, distill, evaluate, report."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from hast_lightning.callbacks.checkpoint import LastCheckpoint
from hast_lightning.callbacks.evaluation import StudentEvaluation
from hast_lightning.callbacks.progress import StageProgressBar
from hast_lightning.callbacks.samples import SaveSamples
from hast_lightning.callbacks.timing import StageTimer
from hast_lightning.config import Config
from hast_lightning.data.evaluation import EvaluationData, load_evaluation_data
from hast_lightning.data.image_folder import ImageFolderData
from hast_lightning.data.ticker import StepTicker
from hast_lightning.errors import ConfigurationError, DataError
from hast_lightning.evaluation import Evaluation, evaluate
from hast_lightning.models.zoo import PretrainedNetwork
from hast_lightning.models.zoo import load as load_network
from hast_lightning.module import ZeroShotQuantization
from hast_lightning.quantization.size import float_bytes, quantized_bytes
from hast_lightning.reporting.grid import save_grid
from hast_lightning.reporting.loggers import build_loggers, finish_loggers
from hast_lightning.reporting.result import Result
from hast_lightning.reporting.table import results_table
from hast_lightning.reporting.versions import device_name, git_commit, peak_memory_bytes, versions
from hast_lightning.schedule import Action, Schedule, build_schedule
from hast_lightning.synthesis.factory import build_source
from hast_lightning.synthesis.objectives import difficulty

EXPECTED_WARNINGS = (
    # The ticker is an iterable of step numbers: there is nothing for workers to load.
    ".*does not have many workers.*",
    # Student and teacher stay in evaluation mode by design.
    ".*module\\(s\\) in eval mode at the start of training.*",
    # config.yaml is in the run folder before the first metrics are.
    ".*Experiment logs directory .* exists and is not empty.*",
    # Lightning's own use of torch, not ours.
    ".*LeafSpec.*is deprecated.*",
)
HELD_OUT_IMAGES = 1024
"""Held-out synthetic images that agreement is measured on, at most."""
RESULT_FILE = "result.json"
CONFIG_FILE = "config.yaml"
CHECKPOINT_FILE = "last.ckpt"
SAMPLES_FILE = "samples.safetensors"
GRID_FILE = "samples.png"


@dataclass
class Run:
    """The parts of one run, put together and checked, before anything expensive."""

    config: Config
    folder: Path
    network: PretrainedNetwork
    data: EvaluationData | ImageFolderData | None
    module: ZeroShotQuantization

    def evaluate(self) -> Evaluation | None:
        """Student against teacher, on the evaluation data or else on held-out samples."""
        batches = self._batches()
        if batches is None:
            return None
        return evaluate(
            self.module.teacher,
            self.module.student,
            batches,
            self.network.num_classes,
            self.module.device,
        )

    def _batches(self) -> Iterable[tuple[Tensor, Tensor]] | None:
        if self.data is not None:
            return self.data
        try:
            images, labels = self.module.source.held_out(HELD_OUT_IMAGES)
        except DataError:
            # An alternating run is calibrated before its image bank is full.
            return None
        size = self.config.data.batch_size
        pairs = zip(torch.split(images, size), torch.split(labels, size), strict=True)
        return list(pairs)


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
    _refuse_used(folder)
    _prepare_torch(config)
    prepared = _build(config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = asdict(config)
    _write_config(settings, folder)
    loggers = build_loggers(config.logger, folder, settings)
    succeeded = False
    try:
        result = _carry_out(prepared, loggers, command)
        succeeded = True
    finally:
        finish_loggers(loggers, succeeded)
    return result


def _refuse_used(folder: Path) -> None:
    """Leave an earlier run as it is, also one without a result: its samples, its checkpoint."""
    for name in (RESULT_FILE, CHECKPOINT_FILE, SAMPLES_FILE):
        if (folder / name).exists():
            raise ConfigurationError(
                f"hydra.run.dir={folder} already holds a run ({name}): choose another folder"
            )


def _prepare_torch(config: Config) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for pattern in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", pattern)
    # torch's CPU kernels are many times slower on denormal numbers, and the gradients of
    # well-fitted images are full of them.
    torch.set_flush_denormal(True)
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    seed_everything(config.seed, verbose=False)


def _build(config: Config, folder: Path) -> Run:
    network = load_network(config.model)
    data = load_evaluation_data(config.data, network)
    source = build_source(
        config.synthesis, network.input_shape, network.num_classes, config.data.holdout
    )
    loaded = config.synthesis.load is not None
    schedule = build_schedule(config.schedule, source.steps_to_fill, config.run, loaded)
    if data is None and not loaded:
        _require_held_out_images(schedule, source.steps_to_fill)
    module = ZeroShotQuantization(config, network, source, schedule)
    return Run(config, folder, network, data, module)


def _require_held_out_images(schedule: Schedule, steps_to_fill: int | None) -> None:
    """Refuse a run that could not be evaluated in the end."""
    planned = schedule.completed(Action.SYNTHESIZE, schedule.iterations)
    if planned < (steps_to_fill or 0):
        raise ConfigurationError(
            f"data=none measures on the last images of the bank, which takes {steps_to_fill} "
            f"synthesis steps to fill; the schedule has {planned}"
        )


def _write_config(settings: dict[str, Any], folder: Path) -> None:
    OmegaConf.save(OmegaConf.create(settings), folder / CONFIG_FILE)


def _carry_out(run: Run, loggers: list[Logger], command: str) -> Result | None:
    timer = StageTimer()
    student_evaluation = StudentEvaluation(
        run.evaluate, run.config.callbacks.evaluate_every_n_steps
    )
    _fit(run, loggers, [timer, student_evaluation])
    if "report" in run.config.run:
        _save_grid(run)
    if "distill" not in run.config.run or "evaluate" not in run.config.run:
        return None
    start = time.perf_counter()
    final = run.evaluate()
    assert final is not None
    seconds = {**timer.seconds, "evaluation": time.perf_counter() - start}
    result = _result(run, final, student_evaluation, seconds, command)
    result.write(run.folder / RESULT_FILE)
    if "report" in run.config.run:
        Console().print(results_table(result))
        Console().print(f"Everything is in {run.folder}", soft_wrap=True)
    return result


def _fit(run: Run, loggers: list[Logger], callbacks: list[Callback]) -> None:
    """Go through the schedule: one batch of the trainer is one iteration of it."""
    config, options = run.config, run.config.trainer
    module = run.module
    callbacks = [
        *callbacks,
        SaveSamples(module.source.save, run.folder / SAMPLES_FILE),
        LastCheckpoint(run.folder / CHECKPOINT_FILE, config.callbacks.checkpoint_every_n_steps),
        *([StageProgressBar()] if config.callbacks.progress else []),
    ]
    trainer = Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=options.strategy,
        precision=options.precision,  # type: ignore[arg-type]  # checked by the schema
        # One epoch of as many ticks as the schedule has iterations: max_steps would count
        # every optimizer's steps together.
        max_epochs=1,
        logger=loggers,
        callbacks=callbacks,
        default_root_dir=run.folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=options.log_every_n_steps,
    )
    ticker = StepTicker(module.iteration, module.schedule.iterations)
    try:
        trainer.fit(module, DataLoader(ticker, batch_size=None))
    except SystemExit as end:
        # What the trainer makes of an interrupt; the jobs of a sweep must end with this one.
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from end
        raise
    # The trainer leaves the module on the CPU; what is measured in the end runs, as all the
    # rest, on the device that the result names.
    module.to(trainer.strategy.root_device)


@torch.no_grad()
def _save_grid(run: Run) -> None:
    """A picture of samples: label, the teacher's opinion, difficulty."""
    images, labels = run.module.source.sample(run.config.callbacks.grid_images)
    logits = run.module.teacher(images)
    save_grid(
        run.folder / GRID_FILE,
        images,
        labels,
        difficulty(logits, labels),
        run.network.mean,
        run.network.std,
        logits.argmax(dim=1),
    )


def _result(
    run: Run,
    final: Evaluation,
    student_evaluation: StudentEvaluation,
    seconds: dict[str, float],
    command: str,
) -> Result:
    config, schedule, module = run.config, run.module.schedule, run.module
    labelled = run.data is not None
    calibrated = student_evaluation.calibrated
    teacher_bytes = float_bytes(run.network.network)
    return Result(
        recipe=config.recipe,
        seed=config.seed,
        weight_bits=config.quantizer.weight_bits,
        activation_bits=config.quantizer.activation_bits,
        teacher_top1=final.teacher_top1 if labelled else None,
        calibrated_top1=calibrated.student_top1 if labelled and calibrated else None,
        quantized_top1=final.student_top1 if labelled else None,
        teacher_agreement=final.agreement,
        agreement_on="evaluation images" if labelled else "held-out synthetic images",
        calibrated_agreement=calibrated.agreement if calibrated else None,
        evaluated_images=final.images,
        synthesis_steps=schedule.completed(Action.SYNTHESIZE, module.iteration),
        calibration_steps=schedule.completed(Action.CALIBRATE, module.iteration),
        student_steps=schedule.completed(Action.DISTILL, module.iteration),
        seconds_by_stage=seconds,
        peak_memory_bytes=peak_memory_bytes(module.device),
        device=device_name(module.device),
        versions=versions(),
        teacher_bytes=teacher_bytes,
        quantized_bytes=quantized_bytes(module.student, teacher_bytes),
        best_on_test_top1=student_evaluation.best if labelled else None,
        status="complete",
        git_commit=git_commit(),
        command=command,
    )
