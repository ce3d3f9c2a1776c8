"""The student's outputs as they are, against the teacher's: also of what is no classifier."""

from __future__ import annotations

import torch
from torch import Tensor

from hast_lightning.core.batch import Needs, Seen, weighted_mean
from hast_lightning.core.network import TOKENS, Network
from hast_lightning.core.outputs import shape_of_output
from hast_lightning.core.part import part
from hast_lightning.core.term import Term

ALIKE = 1e-12
"""Share of their mean square that values vary by at most where only rounding tells them apart."""


def relative_squared_error(
    student: Tensor, teacher: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Return ``mean (s - t)^2 / var t``, a scalar, float32.

    The variance is that of all values of the batch. Where they are all alike, as a single one is,
    their mean square takes its place.

    Args:
        student: (N, ...).
        teacher: Of the same shape.
        weights: Of the samples, (N,); none: all alike.
    """
    student, teacher = student.float().flatten(1), teacher.float().flatten(1)
    spread, square = teacher.detach().var(correction=0), teacher.detach().square().mean()
    spread = torch.where(spread > ALIKE * square, spread, square)
    each = (student - teacher).square().mean(dim=1)
    return weighted_mean(each, weights) / spread.clamp_min(torch.finfo(torch.float32).tiny)


@part("term", "raw_outputs")
class RawOutputs(Term):
    """Mean over the outputs of ``mean (s - t)^2 / var t``: each relative to its own spread.

    What a network puts out need not be logits: feature maps of a detector, boxes, maps of a
    segmentation head and of its auxiliary head. Source: squared error of outputs, Ba and Caruana
    (NeurIPS 2014), there of logits; that each output is divided by its variance is ours.
    """

    output: str | None = None
    """The one of several outputs that is compared; null: all."""

    title = "Error of the outputs"
    by_sample = False
    modalities = (*Term.modalities, TOKENS)
    several_outputs = True

    def bind(self, teacher: Network, student: Network) -> Needs:
        """Ask for the student's outputs.

        Raises:
            ModelError: ``output`` names none of the network's.
        """
        outputs = teacher.pretrained.outputs
        if self.output is not None:
            shape_of_output(outputs, self.output)
        elif outputs is not None:
            self.name_parts(outputs.names)
        return Needs(student=())

    def forward(self, seen: Seen) -> Tensor:
        """Return the share of each output in the mean, (outputs,); of one output a scalar."""
        assert seen.student is not None
        weights = seen.batch.weights
        if self.output is not None:
            student, teacher = seen.student.output(self.output), seen.teacher.output(self.output)
            return relative_squared_error(student, teacher, weights)
        of_student, of_teacher = seen.student.by_name(), seen.teacher.by_name()
        errors = [relative_squared_error(of_student[n], of_teacher[n], weights) for n in of_teacher]
        return errors[0] if len(errors) == 1 else torch.stack(errors) / len(errors)
