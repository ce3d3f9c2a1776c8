"""Pictures, histograms and layers of a run, for loggers that show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from hast_lightning.config import CallbacksConfig
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.quantization.diagnosis import diagnose
from hast_lightning.tracking.media import (
    Media,
    MediaLogger,
    Samples,
    promotion_histograms,
    sample_histograms,
    sample_pictures,
)

if TYPE_CHECKING:
    from hast_lightning.training.module import ZeroShotQuantization

HISTOGRAM_IMAGES = 256
"""Images behind the histograms of synthetic images, at most."""
_BATCH = 64
"""Images that go through the teacher at once: few, so that no run needs more memory for it."""


class Observation(Callback):
    """Shows what a run looks like every so many steps of a stage, and when a stage ends.

    While images are made, the first steps are shown more often.

    It takes nothing away from training: no random number is drawn, and no sample used up, so
    that a run has the same numbers with and without it. Between its steps it costs nothing.

    Args:
        options: Interval and number of images.
        network: Says how samples are shown.
    """

    def __init__(self, options: CallbacksConfig, network: PretrainedNetwork) -> None:
        self._options = options
        self._network = network

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Look when it is time, on the first rank."""
        module = cast("ZeroShotQuantization", pl_module)
        _, step, total = module.progress
        due = step == total or step % self._options.media_every_n_steps == 0
        if not (due or _is_early(module, step)) or not trainer.is_global_zero:
            return
        media = self.observe(module)
        for logger in trainer.loggers:
            if media and isinstance(logger, MediaLogger):
                # At the number of the step that was just done, as its own scalars are.
                logger.log_media(media, module.iteration - 1)

    @torch.no_grad()
    def observe(self, module: ZeroShotQuantization) -> Media:
        """Return what there is to see: images while they change, the student once it is one."""
        pictures, histograms = {}, {}
        if _changes_images(module):
            samples = self._samples(module)
            some = _some(samples, self._options.grid_images)
            pictures = sample_pictures(some, self._network)
            histograms = sample_histograms(samples)
        histograms |= promotion_histograms(module.outcome.answers)
        layers = diagnose(module.student) if module.ranges_frozen else ()
        _, step, total = module.progress
        return Media(pictures, histograms, layers, ends_stage=step == total)

    def _samples(self, module: ZeroShotQuantization) -> Samples:
        batch = module.source.preview(HISTOGRAM_IMAGES)
        logits = torch.cat([module.teacher(part.inputs) for part in batch.split(_BATCH)])
        labels = logits.argmax(dim=1) if batch.labels is None else batch.labels
        return Samples(batch.inputs, labels, logits)


def _is_early(module: ZeroShotQuantization, step: int) -> bool:
    """Return whether this is step 1, 4, 16, 64 and so on of a run that begins with making images.

    Images change the most there. Of a bank they show the first batch from its noise on; later
    steps meet other batches.
    """
    stage, first = module.progress.stage, module.agenda.legs[0]
    if stage != first.stage or module.config.main_source not in first.improves:
        return False
    return step.bit_count() == 1 and step.bit_length() % 2 == 1


def _changes_images(module: ZeroShotQuantization) -> bool:
    """Return whether this stage makes images, or is the first of a run whose images are loaded."""
    legs, stage = module.agenda.legs, module.progress.stage
    source = module.config.main_source
    made = any(source in leg.improves for leg in legs)
    return source in module.agenda.leg(stage).improves or (not made and stage == legs[0].stage)


def _some(samples: Samples, count: int) -> Samples:
    """``count`` of the samples, from all of them."""
    index = _evenly(len(samples.images), count)
    return Samples(samples.images[index], samples.labels[index], samples.teacher_logits[index])


def _evenly(total: int, count: int) -> Tensor:
    """``count`` numbers below ``total``, at equal distances; all where there are fewer."""
    number = min(count, total)
    return torch.arange(number) * total // number
