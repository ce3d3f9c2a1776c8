"""Knowledge distillation: the divergence of the student's softened answers from the teacher's."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from hast_lightning.core.batch import Needs, Seen, weighted_mean
from hast_lightning.core.checks import require_choice, require_range
from hast_lightning.core.network import TOKENS, Network, PretrainedNetwork
from hast_lightning.core.outputs import shape_of_output
from hast_lightning.core.part import part
from hast_lightning.core.term import Term
from hast_lightning.errors import ModelError

REDUCTIONS = ("batchmean", "mean")


def kl_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    reduction: str = "batchmean",
    weights: Tensor | None = None,
) -> Tensor:
    """Return ``temperature^2 * KL(T || S)`` of the softened predictions.

    Source: Hinton et al., 2015; HAST (Li et al., CVPR 2023) with temperature 20.

    Args:
        student_logits: (N, classes).
        teacher_logits: (N, classes).
        temperature: What both logits are divided by.
        reduction: ``batchmean`` averages over the batch; ``mean`` over the classes too, as
            the released code of GDFQ does.
        weights: Of the samples, (N,); none: all alike.

    Returns:
        Scalar, float32, zero where the two agree.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    if weights is None:
        divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    else:
        each = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)
        divergence = weighted_mean(each, weights)
    if reduction == "mean":
        # Not kl_div's own "mean", which PyTorch has announced to redefine.
        divergence = divergence / student_logits.shape[1]
    return temperature**2 * divergence


def require_classes(network: PretrainedNetwork, output: str) -> None:
    """Refuse a name of an output that the network does not have, or that has no classes.

    Raises:
        ModelError: it is so.
    """
    shape = shape_of_output(network.outputs, output)
    if len(shape) not in (1, 3) or shape[0] < 2:
        raise ModelError(
            f"output={output}: a divergence is one of logits (N, classes), or of maps (N, classes, "
            f"H, W), and {network.name} puts out {('N', *shape)} there; raw_outputs takes any"
        )


@part("term", "kl")
class KL(Term):
    """Knowledge distillation: ``temperature^2 * KL(T || S)``.

    Source: Hinton et al., 2015; GDFQ (Xu et al., ECCV 2020) and HAST (Li et al., CVPR 2023).
    """

    temperature: float = 20.0
    """What both networks' logits are divided by."""
    reduction: str = "batchmean"
    """``batchmean`` as HAST's; ``mean`` averages over classes too, as GDFQ's released code."""
    output: str | None = None
    """Of a network with several outputs the one whose logits are compared, (N, classes) or maps of
    them; null: the network has one."""

    title = "Distillation loss (KL)"
    modalities = (*Term.modalities, TOKENS)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("temperature", self.temperature, 0, open_minimum=True)
        require_choice("reduction", self.reduction, REDUCTIONS)
        vars(self)["several_outputs"] = self.output is not None

    def bind(self, teacher: Network, student: Network) -> Needs:
        """Ask for the student's logits.

        Raises:
            ModelError: ``output`` names none of the network's, or one without classes.
        """
        if self.output is not None:
            require_classes(teacher.pretrained, self.output)
        return Needs(student=())

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss."""
        assert seen.student is not None
        return kl_divergence(
            seen.student.output(self.output),
            seen.teacher.output(self.output),
            self.temperature,
            self.reduction,
            seen.batch.weights,
        )


@part("term", "adversarial_kl")
class AdversarialKL(KL):
    """Images on which the student does not follow the teacher: ``-temperature^2 * KL(T || S)``.

    For a synthesis step; the gradient comes through both networks.

    Source: Co-Boosting (Dai et al., ICLR 2024), released code: weight 1, temperature 3; there the
    teacher is an ensemble.
    """

    temperature: float = 3.0
    """What both networks' logits are divided by."""

    title = "Distillation loss (KL), to be large"

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss, which is not positive."""
        return -super().forward(seen)
