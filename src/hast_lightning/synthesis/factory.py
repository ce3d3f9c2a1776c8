"""The sample sources that a configuration asks for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hast_lightning.config import SynthesisConfig
from hast_lightning.models.pretrained import PretrainedNetwork
from hast_lightning.synthesis.generator import ConditionalGenerator
from hast_lightning.synthesis.image_bank import ImageBank
from hast_lightning.synthesis.own_images import OwnImages, read_own_images
from hast_lightning.synthesis.source import SampleSource


def source_for(
    config: SynthesisConfig, network: PretrainedNetwork, holdout: float, processes: int = 1
) -> SampleSource:
    """The main source of training images for a network: its own pictures, or what is made.

    Args:
        config: The ``synthesis`` group.
        network: Gives the images' shape, the number of classes and, for own pictures, the
            normalization and the labels.
        holdout: Share of the images that is kept from training.
        processes: Processes that train together.

    Raises:
        UserError: as :func:`build_source`, or the pictures cannot be read.
    """
    if config.source == "images":
        return OwnImages(read_own_images(config.images, network), network, holdout, processes)
    return build_source(config, network.input_shape, network.num_classes, holdout, processes)


def build_source(
    config: SynthesisConfig,
    input_shape: tuple[int, int, int],
    num_classes: int,
    holdout: float,
    world_size: int = 1,
) -> SampleSource:
    """The source of synthetic images, loaded from ``config.load`` where that is set.

    Args:
        config: The ``synthesis`` group.
        input_shape: (C, H, W) of the images.
        num_classes: Labels are 0 to ``num_classes - 1``.
        holdout: Share of an image bank that is kept from training.
        world_size: Processes that synthesize together.

    Raises:
        DataError: ``config.load`` is missing, malformed or made for another network.
    """
    if config.source == "image_bank":
        if config.load is not None:
            return ImageBank.load(Path(config.load), config.bank, input_shape, num_classes, holdout)
        return ImageBank(config.bank, input_shape, num_classes, holdout, world_size)
    if config.load is not None:
        return ConditionalGenerator.load(
            Path(config.load), config.generator, input_shape, num_classes
        )
    return ConditionalGenerator(config.generator, input_shape, num_classes)


def build_calibrator(
    config: SynthesisConfig, input_shape: tuple[int, int, int], num_classes: int
) -> ConditionalGenerator | None:
    """The generator that is trained while ranges are calibrated; none where there is none."""
    if config.calibration.source != "generator":
        return None
    generator = replace(config.generator, batch_size=config.calibration.batch_size)
    return ConditionalGenerator(generator, input_shape, num_classes)
