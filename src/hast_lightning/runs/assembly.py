"""The parts of one run, put together and checked before anything expensive."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from lightning import seed_everything
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from hast_lightning.config import AUTO, FLOAT32, Config
from hast_lightning.core.batch import Batch
from hast_lightning.core.ensemble import OWN
from hast_lightning.core.network import PICTURES, TOKENS, PretrainedNetwork
from hast_lightning.core.source import Source, TrainedSource
from hast_lightning.data.evaluation import EvaluationData, load_evaluation_data
from hast_lightning.data.given import GivenData
from hast_lightning.data.image_folder import ImageFolderData
from hast_lightning.data.texts import TextData, next_tokens
from hast_lightning.errors import ConfigurationError, DataError, DivergenceError
from hast_lightning.graph.outputs import puts_out_maps
from hast_lightning.graph.tracing import trace
from hast_lightning.models.teacher import batch_norms_are_new
from hast_lightning.models.zoo import load_all
from hast_lightning.records.folder import Origin
from hast_lightning.runs.sources import build_sources
from hast_lightning.runtime.ranks import rank, world_size
from hast_lightning.runtime.trainer import fastest_precision
from hast_lightning.training.agenda import Agenda
from hast_lightning.training.evaluation import (
    Confusion,
    Evaluation,
    evaluate,
    evaluate_values,
)
from hast_lightning.training.module import ZeroShotQuantization

_log = logging.getLogger(__name__)

EXPECTED_WARNINGS = (
    # The ticker is an iterable of step numbers: there is nothing for workers to load.
    ".*does not have many workers.*",
    # Student and teacher stay in evaluation mode by design.
    ".*module\\(s\\) in eval mode at the start of training.*",
    # config.yaml is in the run folder before the first metrics are.
    ".*Experiment logs directory .* exists and is not empty.*",
    # Lightning's own use of torch, not ours.
    ".*LeafSpec.*is deprecated.*",
    # Stages make their optimizers when they begin.
    ".*configure_optimizers.* returned `None`.*",
)
HELD_OUT_IMAGES = 1024
"""Held-out images that agreement is measured on, at most."""


@dataclass
class Run:
    """The parts of one run, put together and checked, before anything expensive.

    Attributes:
        confusion: What the last evaluation counted, (classes, classes) int64: the teacher's
            class by the student's.
        callbacks: Objects of the user's, beside those that the configuration names.
        loggers: Likewise.
    """

    config: Config
    folder: Path
    origin: Origin
    network: PretrainedNetwork
    data: EvaluationData | ImageFolderData | TextData | GivenData | None
    module: ZeroShotQuantization
    confusion: Tensor | None = None
    callbacks: Sequence[Callback] = ()
    loggers: Sequence[Logger] = ()

    def evaluate(self) -> Evaluation | None:
        """Student against teacher, on the evaluation data or else on held-out samples.

        Raises:
            DivergenceError: the student's weights or logits are NaN or infinite.
        """
        self.module.require_finite_weights()
        batches = self._batches()
        if batches is None:
            return None
        try:
            return self._evaluate_on(batches)
        except DivergenceError as error:
            raise self.module.divergence(str(error), max(self.module.iteration - 1, 0)) from error

    def _evaluate_on(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Evaluation:
        both, device = (self.module.teacher, self.module.student), self.module.device
        if (values := self.network.values) is not None:
            return evaluate_values(*both, (inputs for inputs, _ in batches), values, device)
        texts, classes = self.network.modality == TOKENS, self.network.num_classes
        # A vocabulary squared is too much to look at.
        counts = None if texts else Confusion(classes).to(device)
        found = evaluate(*both, batches, classes, device, counts)
        self.confusion = None if counts is None else counts.compute().cpu()
        return found

    def _batches(self) -> Iterable[tuple[Tensor, Tensor]] | None:
        """This rank's share of the batches."""
        batches = self.all_batches()
        return None if batches is None else islice(batches, rank(), None, world_size())

    def all_batches(self) -> Iterable[tuple[Tensor, Tensor]] | None:
        """Images and labels to evaluate on, of every rank; none where there are none yet.

        To a network that puts out values labels mean nothing.
        """
        if self.data is not None:
            return self.data
        try:
            batch = self.module.source.held_out(HELD_OUT_IMAGES)
        except DataError:
            # An alternating run is calibrated before its image bank is full.
            return None
        size = self.config.data.batch_size
        if self.network.regresses:
            return [(part.inputs, torch.zeros(len(part.inputs))) for part in batch.split(size)]
        return [(part.inputs, _labels_of(part, self.module.teacher)) for part in batch.split(size)]


def _labels_of(batch: Batch, teacher: nn.Module) -> Tensor:
    """Return the labels of a batch: the next tokens of texts, or else the teacher's answers."""
    if batch.labels is not None:
        return batch.labels
    if not batch.inputs.is_floating_point():
        return next_tokens(batch.inputs)
    with torch.no_grad():
        answers: Tensor = teacher(batch.inputs)
    return answers.argmax(dim=1)


def prepare_torch(config: Config) -> None:
    """Set what belongs to the process: seeds, threads, denormals, precision, expected warnings."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for pattern in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", pattern)
    # torch's CPU kernels are many times slower on denormal numbers, and the gradients of
    # well-fitted images are full of them.
    torch.set_flush_denormal(True)
    if torch.cuda.is_available():
        # Jobs of a sweep share a process; the peak is to be this run's.
        torch.cuda.reset_peak_memory_stats()
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    if config.trainer.precision == AUTO:
        # From here on the run has what it chose, so that it goes on with the same elsewhere.
        # Bfloat16 was compared to float32 on pictures alone.
        measured = config.model.modality == PICTURES
        config.trainer.precision = fastest_precision(config.trainer) if measured else FLOAT32
    seed_everything(config.seed, verbose=False)


def build(
    config: Config,
    folder: Path,
    origin: Origin,
    network: PretrainedNetwork | None = None,
    data: GivenData | None = None,
) -> Run:
    """Load the network and the evaluation data; build the source, the schedule and the module.

    Nothing is written, and nothing is computed that takes more than seconds. A ``network`` or
    ``data`` that are handed over take the place of those that ``config`` describes.

    Raises:
        UserError: something handed in is wrong or does not fit together.
    """
    network = network or load_all(config.model, config.teachers)
    _warn_of_new_networks(config, network)
    if data is not None and network.outputs is not None:
        raise DataError(
            f"data= has labels, and the network {network.name} puts out several tensors "
            f"({network.outputs.in_words}): leave it out, and compare what both networks say to "
            "your images in Python"
        )
    labeled = data is not None or config.data.source != "none"
    if labeled and puts_out_maps(network.network) and not network.denoises:
        raise DataError(
            f"data: the network {network.name} puts out maps, of which labels of whole images say "
            "nothing: choose data=none"
        )
    evaluation_data = data or load_evaluation_data(config.data, network)
    module = ZeroShotQuantization(config, network, build_sources(config, network))
    if not module.agenda.iterations:
        raise ConfigurationError(
            f"order={config.order}: none of these stages has a step, so nothing would be done"
        )
    _require_a_student(module, config)
    _warn_of_idle_training(module, config)
    _require_samples(module.agenda, module.sources, config, held_out=evaluation_data is None)
    return Run(config, folder, origin, network, evaluation_data, module)


def _warn_of_new_networks(config: Config, network: PretrainedNetwork) -> None:
    """Warn of networks that were to be loaded, and look as if they were never trained."""
    named = {OWN: config.model, **config.teachers}
    for name, each in {OWN: network, **network.teachers}.items():
        untrained = name in named and not named[name].pretrained
        if not untrained and batch_norms_are_new(trace(each.network)):
            _log.warning(
                "the BatchNorms of %s have the statistics of a new network (mean 0, variance 1): "
                "was it trained, and were its weights loaded?",
                each.name,
            )


def _require_a_student(module: ZeroShotQuantization, config: Config) -> None:
    """Refuse stages that change the student of which none has a step: nothing is handed back."""
    if config.trains and not any(
        leg.begins_anew or leg.trains_student for leg in module.agenda.legs
    ):
        idle = [n for n, stage in module.stages.items() if stage.calibrates or stage.trains_student]
        steps = " or ".join(f"stages.{name}.steps" for name in idle)
        raise ConfigurationError(
            f"order={config.order}: none of the stages that change the student has a step; raise "
            f"{steps}, or leave {'it' if len(idle) == 1 else 'them'} out of order"
        )


def _warn_of_idle_training(module: ZeroShotQuantization, config: Config) -> None:
    """Warn of a method that trains, and whose budget has no steps for it."""
    trains = {name for name, stage in module.stages.items() if stage.trains_student}
    if trains and not trains & set(module.agenda.stages):
        _log.warning(
            "schedule=%s has no steps for %s: the student is calibrated alone, and "
            "method=without_training would correct it, too",
            *(config.schedule.name, " and ".join(f"stages.{name}" for name in sorted(trains))),
        )


def _require_samples(
    agenda: Agenda, sources: Mapping[str, Source], config: Config, *, held_out: bool
) -> None:
    """Refuse a run that would train on noise, or could not be evaluated in the end."""
    for name, source in sources.items():
        if not isinstance(source, TrainedSource) or source.filled_by_loading:
            continue
        planned = agenda.synthesis_steps(name, agenda.iterations)
        if planned < source.steps_to_start:
            raise ConfigurationError(
                f"sources.{name}: the first samples are finished after {source.steps_to_start} "
                f"synthesis steps, and the stages of this run have {planned}"
            )
        if held_out and name == config.main_source and planned < (source.steps_to_fill or 0):
            raise ConfigurationError(
                f"data=none measures on the last samples of sources.{name}, which takes "
                f"{source.steps_to_fill} synthesis steps to fill; the stages of this run have "
                f"{planned}"
            )
