"""The product as it really runs: composed by Hydra, driven by Lightning's Trainer."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Clock, Comparison, finish, seconds_of
from hast_lightning.config import (
    Config,
    config_folder,
    register_recipes,
    register_schemas,
    to_object,
)
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.models.zoo import load as load_network
from hast_lightning.quantization.fake_quant import (
    ActivationMode,
    freeze_ranges,
    set_activation_mode,
)
from hast_lightning.records.folder import Origin
from hast_lightning.runs import pipeline
from hast_lightning.runs.assembly import Run, build_sources, prepare_torch
from hast_lightning.sources.image_bank import ImageBank
from hast_lightning.tracking.loggers import build_loggers
from hast_lightning.training.agenda import Agenda
from hast_lightning.training.module import ZeroShotQuantization

EXPERIMENTS = {"resnet20": "cifar10_resnet20_w3a3_quick", "mobilenet_v2": "mobilenetv2_w3a3"}
FLOAT32, BF16 = "trainer.precision=32-true", "trainer.precision=bf16-mixed"
VARIANTS = {
    "float32": [FLOAT32],
    "channels_last": [FLOAT32, "trainer.channels_last=true"],
    "bf16": [BF16],
    "compile": [FLOAT32, "trainer.compile=true"],
    "bf16_compile": [BF16, "trainer.compile=true"],
}
CALIBRATED_ON_THE_BANK = [
    "stages.calibration.source=bank",
    "stages.calibration.terms.bns.enabled=false",
    "stages.calibration.terms.cross_entropy.enabled=false",
]
"""Ranges observe the bank's images; no generator is trained meanwhile."""
STATISTICS_BATCHES, STATISTICS_BATCH_SIZE = 4, 16


@dataclass(frozen=True)
class Setting:
    """What is compared.

    Attributes:
        network: ``resnet20`` or ``mobilenet_v2``.
        device: ``cpu`` or ``cuda``.
        student_batch: Images of a student step.
        synthesis_batch: Images of a synthesis iteration.
        image_size: Height and width in pixels; none: the network's own.
        variant: One of :data:`VARIANTS`.
        clock: What times are read from.
    """

    network: str
    device: torch.device
    student_batch: int
    synthesis_batch: int
    image_size: int | None = None
    variant: str = "float32"
    clock: Clock = time.perf_counter

    def compose(self, *overrides: str) -> Config:
        """The shipped recipe of the network with random weights and no evaluation data."""
        return self.compose_words(
            f"+experiment={EXPERIMENTS[self.network]}",
            f"schedule.student_batch={self.student_batch}",
            f"schedule.image_batch={self.synthesis_batch}",
            *CALIBRATED_ON_THE_BANK,
            *overrides,
        )

    def compose_words(self, *words: str) -> Config:
        """What ``words`` choose, with random weights and no evaluation data."""
        return composed(
            *words,
            *([f"model.input_size={self.image_size}"] if self.image_size else []),
            "model.pretrained=false",
            "model.checkpoint=null",
            "data=none",
            "callbacks=quiet",
            f"trainer.accelerator={'gpu' if self.device.type == 'cuda' else 'cpu'}",
            *VARIANTS[self.variant],
        )


def composed(*words: str) -> Config:
    """The checked configuration of ``python -m hast_lightning <words>``."""
    register_schemas()
    register_recipes(words)
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return to_object(compose("config", list(words)))


def random_network(config: Config) -> PretrainedNetwork:
    """The network with random weights and the BatchNorm statistics that they lead to."""
    pretrained = load_network(config.model)
    network = pretrained.network
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # a plain average over the batches
    network.train()
    with torch.no_grad():
        for _ in range(STATISTICS_BATCHES):
            network(torch.randn(STATISTICS_BATCH_SIZE, *pretrained.input_shape))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()
    return pretrained


def build_run(config: Config, folder: Path, only: str | None = None) -> Run:
    """Everything of one run; the same seed gives the same network and the same images.

    Args:
        config: A checked configuration.
        folder: The run folder.
        only: The one stage whose steps are done; none: all of them.
    """
    prepare_torch(config)
    network = random_network(config)
    # Agreement is not measured, so that no image has to be held out.
    config.data.holdout = 0.0
    module = ZeroShotQuantization(config, network, build_sources(config, network))
    if only is not None:
        module.agenda = Agenda((module.agenda.leg(only),))
    return Run(config, folder, Origin("benchmark", None, {}), network, None, module)


def bank_of(run: Run) -> ImageBank:
    """The image bank of a run."""
    bank = run.module.source
    assert isinstance(bank, ImageBank)
    return bank


def fit(run: Run, *callbacks: Callback) -> None:
    """Train exactly as the pipeline trains."""
    loggers = build_loggers(run.config.logger, run.folder, {}, run.module.agenda)
    pipeline.fit(run, loggers, list(callbacks), None)


def fill_bank(run: Run) -> None:
    """Pretend that the image bank was synthesized: images of noise, all available."""
    bank = bank_of(run)
    bank.images.normal_()
    bank.labels.random_(run.network.num_classes)
    bank.filled = len(bank.images)


@torch.no_grad()
def set_ranges(run: Run, calibration_images: torch.Tensor) -> None:
    """Calibrate the student's activation ranges on one batch and freeze them."""
    student = run.module.student
    set_activation_mode(student, ActivationMode.OBSERVE)
    student(calibration_images)
    freeze_ranges(student)
    run.module.ranges_frozen = True


class Interleaved(Callback):
    """Times every step of the Trainer and, after each, one run of the plain counterpart.

    A step of the product is all that lies between two of its ends: the step itself, and what
    Lightning and the other callbacks do around it.

    Args:
        comparison: Gets the times.
        plain: One run of the counterpart.
        warmup: Steps that are run and not counted; the operations of the first are counted.
        clock: What times are read from.
    """

    def __init__(
        self, comparison: Comparison, plain: Callable[[], object], warmup: int, clock: Clock
    ) -> None:
        self.comparison = comparison
        self.clock = clock
        self.plain = plain
        self.warmup = warmup
        self._counting = ExitStack()
        self._counter: FlopCounterMode | None = None
        self._mark = 0.0
        self._done = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Count the operations of the first step, unless a compiler would see the counter."""
        if self._done == 0:
            self._mark = self.clock()
        if self._done == 0 and not pl_module.config.trainer.compile:
            self._counter = self._counting.enter_context(FlopCounterMode(display=False))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Stop the product's clock, run the counterpart, start it again."""
        device = pl_module.device
        finish(device)
        product = self.clock() - self._mark
        if self._counter is not None:
            self._counting.close()
            self.comparison.flops = self._counter.get_total_flops()
            self._counter = None
        plain = seconds_of(self.plain, device, self.clock)
        if self._done >= self.warmup:
            self.comparison.product.append(product)
            self.comparison.plain.append(plain)
        self._done += 1
        self._mark = self.clock()


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for a run's files that goes away."""
    return tempfile.TemporaryDirectory(prefix="hast-benchmark-")
