"""A whole run at reduced counts: synthesis, calibration and distillation, nothing left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.measure import Comparison, seconds_of
from benchmarks.plain import (
    AugmentedImages,
    PlainDistillation,
    PlainSynthesis,
    endless_batches,
)
from benchmarks.product import Setting, build_run, fit, random_network, temporary_folder
from hast_lightning.config import Config


@dataclass(frozen=True)
class Budget:
    """How much of the published procedure is run.

    Attributes:
        batches: Batches of images that are synthesized.
        iterations: Iterations of each.
        calibration_steps: Batches that the activation ranges observe.
        student_steps: Student steps.
    """

    batches: int
    iterations: int
    calibration_steps: int
    student_steps: int

    def __str__(self) -> str:
        return (
            f"{self.batches} x {self.iterations} synthesis iterations, "
            f"{self.calibration_steps} calibration and {self.student_steps} student steps"
        )


def compare_end_to_end(setting: Setting, repeats: int, budget: Budget) -> Comparison:
    """Time whole runs, one of the product and one of the plain procedure in turn.

    What both do before the first step is included (networks, optimizers, the Trainer), the
    evaluation is not. Ranges are calibrated on synthesized images in both.
    """
    comparison = Comparison(f"end to end: {budget}")
    config = setting.compose(
        f"schedule.images={budget.batches * setting.synthesis_batch}",
        f"schedule.image_steps={budget.iterations}",
        f"schedule.calibration_steps={budget.calibration_steps}",
        f"schedule.student_steps={budget.student_steps}",
        f"stages.calibration.batch_size={setting.student_batch}",
    )
    for _ in range(repeats):
        comparison.product.append(
            seconds_of(lambda: run_product(config), setting.device, setting.clock)
        )
        comparison.plain.append(
            seconds_of(lambda: run_plain(setting, config, budget), setting.device, setting.clock)
        )
    return comparison


def run_product(config: Config) -> None:
    """One run of the product, as its pipeline trains."""
    with temporary_folder() as folder:
        fit(build_run(config, Path(folder)))


def run_plain(setting: Setting, config: Config, budget: Budget) -> None:
    """One run of the plain procedure."""
    pretrained = random_network(config)
    network = pretrained.network.to(setting.device)
    images, labels = [], []
    for _ in range(budget.batches):
        start = torch.randn(setting.synthesis_batch, *pretrained.input_shape)
        target = torch.randint(pretrained.num_classes, (setting.synthesis_batch,))
        synthesis = PlainSynthesis(
            network,
            start.to(setting.device),
            target.to(setting.device),
            config.sources["bank"],
            config.stages["synthesis"],
        )
        for _ in range(budget.iterations):
            synthesis.iterate()
        images.append(synthesis.images.detach().cpu())
        labels.append(target)
    bits = (config.quantizer.weight_bits, config.quantizer.activation_bits)
    distillation = PlainDistillation(network, bits, config.stages["distillation"])
    distillation.student.to(setting.device)
    dataset = AugmentedImages(torch.cat(images), torch.cat(labels), augment=True)
    batches = endless_batches(dataset, setting.student_batch)
    for _ in range(budget.calibration_steps):
        distillation.calibrate(next(batches)[0].to(setting.device))
    distillation.freeze_ranges()
    for _ in range(budget.student_steps):
        distillation.step(next(batches)[0].to(setting.device))
