"""One student step and one synthesis iteration, the product against the plain procedure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from benchmarks.measure import Comparison
from benchmarks.plain import (
    AugmentedImages,
    PlainDistillation,
    PlainSynthesis,
    endless_batches,
)
from benchmarks.plain_reconstruction import PlainReconstruction
from benchmarks.product import (
    Interleaved,
    Setting,
    bank_of,
    build_run,
    fill_bank,
    fit,
    set_ranges,
    temporary_folder,
)
from hast_lightning.config import Config
from hast_lightning.models.resnet import CifarResNet
from hast_lightning.runs.assembly import Run
from hast_lightning.stages.reconstruct import Reconstruct

STUDENT_STEP_GOAL = 0.6
"""Largest wanted ratio of a student step, on two CPU cores."""
REBUILT = 5
"""Iterations for each block in a comparison; a run has hundreds."""
REBUILT_IMAGES = 256
BANK_BATCHES = 8
"""Batches of different images in the bank of a student's comparison."""


@dataclass(frozen=True)
class Counts:
    """How often the two are run.

    Attributes:
        repeats: Interleaved pairs that count.
        warmup: Pairs before them that do not.
    """

    repeats: int
    warmup: int

    @property
    def total(self) -> int:
        """All pairs."""
        return self.repeats + self.warmup


def student_words(setting: Setting, batches: int, steps: int, augmented: bool) -> list[str]:
    """What a comparison of student steps is composed with, over a bank of so many batches."""
    return [
        f"schedule.images={batches * setting.student_batch}",
        f"schedule.image_batch={setting.student_batch}",
        f"schedule.student_steps={steps}",
        f"stages.distillation.transforms.crop_and_flip.enabled={str(augmented).lower()}",
    ]


def build_student_pair(
    setting: Setting, config: Config, folder: Path
) -> tuple[Run, PlainDistillation]:
    """Product and plain student with the same weights, images and activation ranges."""
    run = build_run(config, folder, only="distillation")
    fill_bank(run)
    network = run.network.network.to(setting.device)
    bits = (config.quantizer.weight_bits, config.quantizer.activation_bits)
    plain = PlainDistillation(network, bits, config.stages["distillation"])
    plain.student.to(setting.device)
    calibration_images = bank_of(run).images[: setting.student_batch]
    set_ranges(run, calibration_images)
    plain.calibrate(calibration_images.to(setting.device))
    plain.freeze_ranges()
    return run, plain


def compare_student_step(setting: Setting, counts: Counts, augmented: bool = True) -> Comparison:
    """Time the student step.

    Args:
        setting: Network, device, batch size and variant.
        counts: Repetitions.
        augmented: Whether both crop and flip the images; the paper's procedure does.
    """
    name = "student step" if augmented else "student step, images not augmented"
    has_goal = augmented and setting.network == "resnet20" and setting.device.type == "cpu"
    comparison = Comparison(name, goal=STUDENT_STEP_GOAL if has_goal else None)
    config = setting.compose(*student_words(setting, BANK_BATCHES, counts.total, augmented))
    with temporary_folder() as folder:
        run, plain = build_student_pair(setting, config, Path(folder))
        bank = bank_of(run)
        # The released data set lives on the host: each batch is moved to the device.
        dataset = AugmentedImages(bank.images.cpu().clone(), bank.labels.cpu().clone(), augmented)
        batches = endless_batches(dataset, setting.student_batch)
        fit(
            run,
            Interleaved(
                comparison,
                lambda: plain.step(next(batches)[0].to(setting.device)),
                counts.warmup,
                setting.clock,
            ),
        )
    return comparison


def compare_synthesis(setting: Setting, counts: Counts, augmented: bool = False) -> Comparison:
    """Time the synthesis iteration.

    Args:
        setting: Network, device, batch size and variant.
        counts: Repetitions.
        augmented: Whether both crop and flip the images, as every second iteration on
            ImageNet does.
    """
    name = "synthesis iteration" + (", images augmented" if augmented else "")
    comparison = Comparison(name)
    with temporary_folder() as folder:
        run, plain = build_synthesis_pair(setting, counts.total, Path(folder), augmented)
        fit(run, Interleaved(comparison, plain.iterate, counts.warmup, setting.clock))
    return comparison


def build_synthesis_pair(
    setting: Setting, steps: int, folder: Path, augmented: bool = False
) -> tuple[Run, PlainSynthesis]:
    """Product and plain synthesis that start from the same images and labels."""
    transform = "stages.synthesis.transforms.crop_and_flip"
    config = setting.compose(
        f"schedule.images={setting.synthesis_batch}",
        f"schedule.image_steps={steps}",
        f"{transform}.enabled={str(augmented).lower()}",
        f"{transform}.probability=1",
    )
    run = build_run(config, folder, only="synthesis")
    bank = bank_of(run)
    plain = PlainSynthesis(
        run.network.network.to(setting.device),
        bank.active.to(setting.device),
        bank.active_labels.to(setting.device),
        bank,
        config.stages["synthesis"],
    )
    return run, plain


def compare_reconstruction(setting: Setting) -> tuple[Comparison, Comparison]:
    """Time block reconstruction: its iterations, and whole blocks with what is cached for them.

    Args:
        setting: Network (``resnet20`` alone), device and variant.

    Returns:
        Of single iterations; of blocks of :data:`REBUILT` iterations.
    """
    every = Comparison("reconstruction iteration")
    with temporary_folder() as folder:
        run, plain = build_reconstruction_pair(setting, Path(folder))
        fit(run, Interleaved(every, plain.iterate, 0, setting.clock))
    single, blocks = (
        Comparison("reconstruction iteration, batch 64"),
        Comparison(f"a block, {REBUILT} iterations of {REBUILT_IMAGES} cached images"),
    )
    for times, alone, whole in (
        (every.product, single.product, blocks.product),
        (every.plain, single.plain, blocks.plain),
    ):
        for start in range(0, len(times), REBUILT):
            # The first fills the caches.
            alone += times[start + 1 : start + REBUILT]
            whole.append(sum(times[start : start + REBUILT]))
    return single, blocks


def build_reconstruction_pair(
    setting: Setting, folder: Path, *more: str
) -> tuple[Run, PlainReconstruction]:
    """Product and plain reconstruction of the same student on the same images."""
    words = (
        *("method=reconstruct", "model=resnet20_cifar10", "quantizer=minmax", "quantizer.bits=3"),
        *("schedule=quick", f"schedule.images={REBUILT_IMAGES}", f"schedule.unit_steps={REBUILT}"),
        *("stages.reconstruction.views=1", "schedule.image_batch=64"),
        "stages.reconstruction.transforms.crop_and_flip.enabled=false",
    )
    config = setting.compose_words(*words, *more)
    run = build_run(config, folder, only="reconstruction")
    fill_bank(run)
    network = run.network.network.to(setting.device)
    images = bank_of(run).images.to(setting.device)
    assert isinstance(network, CifarResNet)
    stage = config.stages["reconstruction"]
    assert isinstance(stage, Reconstruct)
    plain = PlainReconstruction(network, (3, 3), stage, images)
    set_ranges(run, images[:64].cpu())
    plain.calibrate(images[:64])
    return run, plain


class LossDeviation(Callback):
    """Runs the plain counterpart on the same images and compares the losses.

    Only first steps are compared: rounding and the sign of the image gradient turn the
    smallest differences into other trajectories.

    Args:
        plain: One step of the counterpart; returns its loss.
        loss: The product's loss of the step that was just done, from what it logs.
    """

    def __init__(self, plain: Callable[[], Any], loss: Callable[[Any], float]) -> None:
        self.plain, self.loss = plain, loss
        self.relative = float("nan")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Compare the step's losses."""
        expected = float(self.plain())
        self.relative = abs(self.loss(pl_module.outcome.scalars) - expected) / abs(expected)


def student_loss(scalars: dict[str, Tensor | float]) -> float:
    """The sum of all terms on the images and on their promoted copies."""
    terms = {name: value for name, value in scalars.items() if name.startswith("distillation/")}
    terms.pop("distillation/learning_rate")
    return float(sum(float(value) for value in terms.values()))


def synthesis_loss(scalars: dict[str, Tensor | float]) -> float:
    """The sum of the terms that the images are optimized for."""
    return float(sum(float(v) for name, v in scalars.items() if name.startswith("synthesis/")))


def student_deviation(setting: Setting) -> float:
    """Relative deviation of the student's loss in the first step on the same images."""
    config = setting.compose(*student_words(setting, batches=1, steps=1, augmented=False))
    with temporary_folder() as folder:
        run, plain = build_student_pair(setting, config, Path(folder))
        images = bank_of(run).images.clone().to(setting.device)
        deviation = LossDeviation(lambda: plain.step(images), student_loss)
        fit(run, deviation)
    return deviation.relative


def synthesis_deviation(setting: Setting) -> float:
    """Relative deviation of the synthesis loss in the first iteration."""
    with temporary_folder() as folder:
        run, plain = build_synthesis_pair(setting, 1, Path(folder))
        deviation = LossDeviation(plain.iterate, synthesis_loss)
        fit(run, deviation)
    return deviation.relative
