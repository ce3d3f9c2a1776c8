"""Feature alignment between the blocks of student and teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hast_lightning.core.batch import Needs, Seen, weighted_mean
from hast_lightning.core.network import Network
from hast_lightning.core.part import part
from hast_lightning.core.slices import slices_of
from hast_lightning.core.term import Term
from hast_lightning.graph.blocks import require_taps
from hast_lightning.graph.names import names_of


class _MeanSquare(torch.autograd.Function):
    """Mean of squares over all positions, in one pass over memory each way."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        ctx.save_for_backward(features)
        positions = tuple(range(2, features.dim()))
        slices = slices_of(features)
        if len(slices) == 1:
            norms: Tensor = torch.linalg.vector_norm(features, dim=positions, dtype=torch.float32)
            return norms.square_().div_(math.prod(features.shape[2:]))
        return torch.cat([features[each].float().square().mean(positions) for each in slices])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (features,) = ctx.saved_tensors
        area = math.prod(features.shape[2:])
        slope = (gradients[0] * (2 / area)).to(features.dtype)
        gradient: Tensor = features * slope.view(*slope.shape, *(1,) * (features.dim() - 2))
        return gradient


def channel_attention(features: Tensor) -> Tensor:
    """Return ``normalize_2(mean over H, W of features^2)``, the attention over channels.

    Source: HAST (Li et al., CVPR 2023), feature alignment.

    Args:
        features: (N, C, H, W), or values of other dimensions (N, C, ...).

    Returns:
        (N, C), float32, every row of Euclidean length 1 (0 where all features are 0).
    """
    # Of vectors each channel has one place.
    maps = features if features.dim() > 2 else features.unsqueeze(-1)
    mean_square: Tensor = _MeanSquare.apply(maps)
    return F.normalize(mean_square, dim=1)


def alignment_losses(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    weights: Tensor | None = None,
) -> Tensor:
    """Return ``MSE(a_S, a_T)`` of the channel attentions at every block.

    Source: HAST (Li et al., CVPR 2023), without the weight lambda.

    Args:
        student_features: One (N, C_l, H_l, W_l) per block.
        teacher_features: The same blocks of the teacher; at least one.
        weights: Of the samples, (N,); none: all alike.

    Returns:
        (blocks,), float32; their sum is HAST's loss.
    """
    losses = [
        _attention_error(channel_attention(student), channel_attention(teacher), weights)
        for student, teacher in zip(student_features, teacher_features, strict=True)
    ]
    return torch.stack(losses)


def _attention_error(student: Tensor, teacher: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return F.mse_loss(student, teacher)
    return weighted_mean((student - teacher).square().mean(dim=1), weights)


@part("term", "channel_attention")
class ChannelAttention(Term):
    """Feature alignment: the channels that teacher and student attend to, at every block.

    ``sum over blocks of MSE(a_S, a_T)`` with ``a = normalize_2(mean over H, W of f^2)``.

    Source: HAST (Li et al., CVPR 2023), feature alignment.
    """

    weight: float = 1000.0
    """The paper's lambda."""

    title = "Feature alignment loss"
    several_outputs = True

    def bind(self, teacher: Network, student: Network) -> Needs:
        """Find the ends of blocks.

        Raises:
            ModelError: there are none, and ``model.taps`` names none.
        """
        self._taps = taps = require_taps(teacher, self.kind)
        self.name_parts(names_of(teacher.graph_module.graph, taps))
        return Needs(teacher=taps, student=taps)

    def forward(self, seen: Seen) -> Tensor:
        """Return the loss of each block, (blocks,)."""
        return alignment_losses(*features_of(seen, self._taps), seen.batch.weights)


def features_of(seen: Seen, taps: Sequence[str]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the values of nodes of the student, and those of the teacher."""
    assert seen.student is not None
    return [seen.student.values[tap] for tap in taps], [seen.teacher.values[tap] for tap in taps]
