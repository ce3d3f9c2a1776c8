"""What the networks make of some synthetic images, before and after their promotion."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, fx

from hast_lightning.distillation.promotion import promote
from hast_lightning.distillation.terms import DistillationPair, distillation_loss
from hast_lightning.models.graph import expose
from hast_lightning.module import ZeroShotQuantization
from hast_lightning.quantization.fake_quant import held_weights
from hast_lightning.synthesis.objectives import difficulty

FEWEST, MOST = 32, 512
MOST_VALUES = 2**21
"""Images are looked at as long as their pixels are no more than this."""


class Samples(NamedTuple):
    """Some images and what the networks say to them.

    Attributes:
        images: (N, C, H, W), normalized.
        labels: (N,), int64.
        teacher: Classes that the teacher predicts (N,).
        student: Classes that the student predicts (N,); none where it is not calibrated.
        of_teacher: Difficulty for the teacher (N,).
        of_student: Difficulty for the student (N,).
        promoted_of_teacher: Difficulty of the promoted images for the teacher (N,); none
            without promotion.
        promoted_of_student: The same for the student.
        loss: The student's loss on the batch, a scalar repeated for each image (N,).
        promoted_loss: The same on the promoted batch.
    """

    images: Tensor
    labels: Tensor
    teacher: Tensor
    of_teacher: Tensor
    student: Tensor | None = None
    of_student: Tensor | None = None
    promoted_of_teacher: Tensor | None = None
    promoted_of_student: Tensor | None = None
    loss: Tensor | None = None
    promoted_loss: Tensor | None = None

    @property
    def losses(self) -> tuple[float, float] | None:
        """The mean loss as the images are and promoted; none without promotion."""
        if self.loss is None or self.promoted_loss is None:
            return None
        return float(self.loss.mean()), float(self.promoted_loss.mean())


def sample_count(input_shape: tuple[int, int, int]) -> int:
    """How many images are looked at: fewer of large ones, so that it takes seconds."""
    channels, height, width = input_shape
    return max(FEWEST, min(MOST, MOST_VALUES // (channels * height * width)))


def look_at(module: ZeroShotQuantization, images: Tensor, labels: Tensor) -> Samples:
    """Ask teacher and student, and promote as a student step would.

    Changes neither of them and draws no random numbers.

    Args:
        module: After its run.
        images: (N, C, H, W), normalized.
        labels: (N,), int64.
    """
    size = module.micro_batch or module.config.distillation.batch_size
    batches = zip(torch.split(images.detach(), size), torch.split(labels, size), strict=True)
    assert isinstance(module.student, fx.GraphModule)
    exposed = expose(module.student, module.taps)
    with held_weights(module.student):
        parts = [_look_at_batch(module, exposed, *batch) for batch in batches]
    columns = zip(Samples._fields, zip(*parts, strict=True), strict=True)
    # What is none in one batch is in all of them.
    joined = {name: torch.cat(values) for name, values in columns if values[0] is not None}
    return Samples(**joined)


def _look_at_batch(
    module: ZeroShotQuantization, exposed: fx.GraphModule, images: Tensor, labels: Tensor
) -> Samples:
    with torch.no_grad():
        of_teacher = module.teacher(images)
        seen = Samples(images, labels, of_teacher.argmax(1), difficulty(of_teacher, labels))
        if not module.ranges_frozen:
            return seen
        of_student = module.student(images)
    student = {"student": of_student.argmax(1), "of_student": difficulty(of_student, labels)}
    seen = seen._replace(**student)
    if not module.config.distillation.promotion.enabled:
        return seen
    return seen._replace(**_promoted(module, exposed, images, labels))


def _promoted(
    module: ZeroShotQuantization, exposed: fx.GraphModule, images: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """What a step up the student's loss, as HAST trains on it, does to a batch."""
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        loss, _ = _loss(module, exposed, images, labels)
    (gradient,) = torch.autograd.grad(loss, images)
    harder = promote(images, gradient, module.config.distillation.promotion.eps)
    with torch.no_grad():
        promoted_loss, pair = _loss(module, exposed, harder, labels)
    return {
        "promoted_of_teacher": difficulty(pair.teacher_logits, labels),
        "promoted_of_student": difficulty(pair.student_logits, labels),
        # Every term is a mean over images, so the mean of all batches is that of all images.
        "loss": loss.detach().expand(len(labels)),
        "promoted_loss": promoted_loss.expand(len(labels)),
    }


def _loss(
    module: ZeroShotQuantization, exposed: fx.GraphModule, images: Tensor, labels: Tensor
) -> tuple[Tensor, DistillationPair]:
    teacher_logits, teacher_features = module.teacher.features(images)
    student_logits, student_features = exposed(images)
    pair = DistillationPair(
        student_logits, teacher_logits, student_features, teacher_features, labels
    )
    return distillation_loss(module.terms, pair).total, pair
