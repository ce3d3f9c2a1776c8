"""Alignment of the places that student and teacher attend to, alone and with soft weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hast_lightning.core.batch import Needs, Seen, weighted_mean
from hast_lightning.core.checks import require_range
from hast_lightning.core.network import Network
from hast_lightning.core.part import part
from hast_lightning.core.term import Term
from hast_lightning.graph.blocks import require_taps
from hast_lightning.graph.names import names_of
from hast_lightning.runtime.ranks import averaged
from hast_lightning.terms.channel_attention import (
    ChannelAttention,
    alignment_losses,
    features_of,
)


def spatial_attention(features: Tensor) -> Tensor:
    """Return ``normalize_2(mean over channels of features^2)``, the attention over places.

    Source: attention transfer (Zagoruyko and Komodakis, ICLR 2017), equation 1 with p = 2.

    Args:
        features: (N, C, H, W).

    Returns:
        (N, H * W), float32, every row of Euclidean length 1 (0 where all features are 0).
    """
    # Of vectors there is one place, which takes all attention.
    maps = features if features.dim() > 2 else features.unsqueeze(-1)
    return F.normalize(maps.float().square().mean(dim=1).flatten(1), dim=1)


def spatial_losses(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    weights: Tensor | None = None,
) -> Tensor:
    """Return ``MSE(s_S, s_T)`` of the spatial attentions at every block, (blocks,), float32.

    Args:
        student_features: One (N, C_l, H_l, W_l) per block.
        teacher_features: The same blocks of the teacher; at least one.
        weights: Of the samples, (N,); none: all alike.
    """
    pairs = zip(student_features, teacher_features, strict=True)
    errors = [
        (spatial_attention(student) - spatial_attention(teacher)).square().mean(dim=1)
        for student, teacher in pairs
    ]
    return torch.stack([weighted_mean(error, weights) for error in errors])


def soft_weights(last: Tensor, before: Tensor, temperature: float) -> Tensor:
    """Return ``K softmax(r / temperature)`` of K losses, with ``r = last / before`` of each.

    What falls slowly, or rises, weighs more. The weights add up to K. A loss that was zero counts
    as one that stays.

    Source: dynamic weight average (Liu et al., CVPR 2019), equation 7.

    Args:
        last: (K,), each loss in the last interval.
        before: (K,), in the one before.
        temperature: The larger, the more alike the weights are.
    """
    ratios = torch.where(before > 0, last / before.clamp_min(torch.finfo(last.dtype).tiny), 1.0)
    return len(ratios) * (ratios / temperature).softmax(dim=0)


@part("term", "spatial_attention")
class SpatialAttention(ChannelAttention):
    """The places that teacher and student attend to, at every block.

    ``sum over blocks of MSE(s_S, s_T)`` with ``s = normalize_2(mean over channels of f^2)``.

    Source: attention transfer (Zagoruyko and Komodakis, ICLR 2017); there the sum of squares
    over places is a norm.
    """

    weight: float = 1000.0
    """What the term is multiplied by, as the channels' in HAST; 0 leaves it out."""

    title = "Spatial alignment loss"

    def forward(self, seen: Seen) -> Tensor:
        """Return the loss of each block, (blocks,)."""
        return spatial_losses(*features_of(seen, self._taps), seen.batch.weights)


@part("term", "adaptive_attention")
class AdaptiveAttention(Term):
    """Channels and places that teacher and student attend to, weighted by how slowly each falls.

    ``sum over blocks of w_c MSE(a_S, a_T) + w_s MSE(s_S, s_T)`` with the attentions of the terms
    ``channel_attention`` and ``spatial_attention``. After every ``interval`` steps the weights are
    those of :func:`soft_weights` for the means of the last two intervals; before, all are 1.

    Ours, in the direction of AFT-KD (Yang et al., Sci Rep 2023), whose weights adapt to how fast
    each loss falls by formulas that are not public here, and of AKT (SAC 2025), which has a softmax
    over channels and a divergence in place of lengths and squares. It is neither of them.
    """

    weight: float = 1000.0
    """What the term is multiplied by, as the channels' in HAST; 0 leaves it out."""
    interval: int = 200
    """Steps between two changes of the weights."""
    temperature: float = 2.0
    """Of the softmax that gives the weights; the larger, the more alike they are."""

    title = "Channel and spatial alignment loss"
    several_outputs = True
    soft: ClassVar[Tensor]
    sums: ClassVar[Tensor]
    last: ClassVar[Tensor]

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("interval", self.interval, 1)
        require_range("temperature", self.temperature, 0, open_minimum=True)

    def bind(self, teacher: Network, student: Network) -> Needs:
        """Find the ends of blocks.

        Raises:
            ModelError: there are none, and ``model.taps`` names none.
        """
        self._taps = require_taps(teacher, self.kind)
        kinds = ("channel", "spatial")
        blocks = names_of(teacher.graph_module.graph, self._taps)
        self.name_parts(tuple(f"{block}/{kind}" for kind in kinds for block in blocks))
        self.register_buffer("soft", torch.ones(len(self.parts)))
        # Of the interval under way, and how many values it has; none yet of the one before.
        self.register_buffer("sums", torch.zeros(len(self.parts) + 1))
        self.register_buffer("last", torch.zeros(len(self.parts)))
        self._changed_at = 0
        return Needs(teacher=self._taps, student=self._taps)

    def forward(self, seen: Seen) -> Tensor:
        """Return the weighted losses, (2 blocks,): of channels, then of places."""
        features = features_of(seen, self._taps)
        weights = seen.batch.weights
        losses = torch.cat(
            [alignment_losses(*features, weights), spatial_losses(*features, weights)]
        )
        if not seen.mark:
            self._remember(losses.detach(), seen.progress.step)
        return self.soft * losses

    @torch.no_grad()
    def _remember(self, losses: Tensor, step: int) -> None:
        begins = step > self.interval and (step - 1) % self.interval == 0
        if begins and step != self._changed_at:  # once a step, in whatever parts it comes
            self._changed_at = step
            means = averaged(self.sums[:-1] / self.sums[-1].clamp_min(1))
            if step > 2 * self.interval:
                self.soft.copy_(soft_weights(means, self.last, self.temperature))
            self.last.copy_(means)
            self.sums.zero_()
        self.sums.add_(torch.cat([losses, losses.new_ones(1)]))
