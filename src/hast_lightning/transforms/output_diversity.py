"""Perturbations that change a network's answers in a direction drawn at random."""

from __future__ import annotations

import torch
from torch import Tensor

from hast_lightning.core.batch import Batch
from hast_lightning.core.checks import require_range
from hast_lightning.core.network import Network
from hast_lightning.core.part import part
from hast_lightning.core.transform import Transform


def answer_gradient(
    network: Network, images: Tensor, directions: Tensor, temperature: float
) -> Tensor:
    """Return the gradient of ``sum_c u_c softmax(z / temperature)_c`` by images, (N, ...).

    Args:
        network: Gives the logits z; the gradients of its parameters stay as they are.
        images: (N, ...), taken as constants.
        directions: u of each image, (N, classes).
        temperature: What logits are divided by.
    """
    with torch.enable_grad():
        shown = images.detach().requires_grad_()
        answers = (network.trace(shown).logits.float() / temperature).softmax(dim=1)
        (gradient,) = torch.autograd.grad((directions * answers).sum(), shown)
    return gradient


@part("transform", "output_diversity")
class OutputDiversity(Transform):
    """Moves every image so that the teacher's answer changes in a random direction (ODS).

    ``x + eps sign(d/dx sum_c u_c softmax(T(x) / temperature)_c)`` with ``u`` uniform in [-1, 1] for
    each class, drawn for each image. The student trains on the moved images alone.

    Source: output diversified sampling (Tashiro et al., NeurIPS 2020), as Co-Boosting (Dai et al.,
    ICLR 2024) has it in its released code, where pixels of deviation 0.5 are moved by 8/255.
    """

    eps: float = 8 / 255
    """Size of the perturbation in normalized pixel units; of features, in deviations of each
    coefficient."""
    temperature: float = 4.0
    """What the teacher's logits are divided by."""

    def __post_init__(self) -> None:
        require_range("eps", self.eps, 0)
        require_range("temperature", self.temperature, 0, open_minimum=True)

    def bind(self, teacher: Network, student: Network) -> None:
        """Remember the teacher."""
        # In a tuple, so that its layers are not registered here.
        self._teacher = (teacher,)

    def forward(self, batch: Batch, gradient: Tensor | None = None) -> Batch:
        """Return the moved batch, differentiable in its images as if the move were a constant."""
        (teacher,) = self._teacher
        shape = (len(batch.inputs), teacher.pretrained.num_classes)
        directions = 2 * torch.rand(shape, device=batch.inputs.device) - 1
        found = answer_gradient(teacher, batch.inputs, directions, self.temperature)
        step = teacher.pretrained.steps_of(found.sign())
        return batch._replace(inputs=torch.add(batch.inputs, step, alpha=self.eps))
