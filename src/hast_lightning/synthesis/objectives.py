"""What synthetic images are optimized for: batch-norm statistics and hard labels.

Everything here is a pure function of the teacher's outputs and differentiable
in them. Losses are computed in float32 (float64 stays float64), whatever
precision the teacher runs in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from hast_lightning.models.teacher import BatchNormStatistics


def batch_norm_statistics_loss(statistics: Sequence[BatchNormStatistics]) -> Tensor:
    """Distance of a batch's statistics from those the teacher saw in its training (BNS).

    ``BNS = mean over layers of [MSE(mean, running_mean) + MSE(var, running_var)]``,
    the data-free objective shared by GDFQ (Xu et al., ECCV 2020), IntraQ (Zhong
    et al., CVPR 2022) and HAST (Li et al., CVPR 2023).

    Args:
        statistics: for each BatchNorm layer four tensors of shape (channels,).

    Returns:
        A scalar, zero when every layer's statistics match.
    """
    layers = [
        F.mse_loss(layer.mean, layer.running_mean) + F.mse_loss(layer.var, layer.running_var)
        for layer in statistics
    ]
    return torch.stack(layers).mean()


def _log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """``log(p_y / (1 - p_y))`` of shape (N,): the label's logit against all others together.

    Both ``p_y`` and ``1 - p_y`` are sigmoids of it, so neither is found by
    subtracting from one, which would lose all digits of a confident sample.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    index = labels.unsqueeze(1)
    others = logits.scatter(1, index, float("-inf")).logsumexp(dim=1)
    return logits.gather(1, index).squeeze(1) - others


def difficulty(logits: Tensor, labels: Tensor) -> Tensor:
    """Difficulty of each sample, ``d(x) = 1 - p_y(x)`` (HAST, hard sample synthesis).

    Args:
        logits: the teacher's outputs, shape (N, classes) with at least two classes.
        labels: shape (N,), int64.

    Returns:
        Shape (N,), in [0, 1]; accurate also where ``p_y`` rounds to one.
    """
    return torch.sigmoid(-_log_odds(logits, labels))


def hardness_weighted_cross_entropy(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Cross-entropy that weighs hard samples more, ``mean[d^gamma * CE]`` (HAST).

    The gradient flows through the weight ``d^gamma`` too. The weight is taken
    as ``exp(gamma * log d)``: with ``gamma < 1`` the derivative of a power is
    infinite at zero, but that of the exponential stays finite even where ``d``
    itself underflows.

    Args:
        logits: the teacher's outputs, shape (N, classes) with at least two classes.
        labels: shape (N,), int64.
        gamma: zero gives the plain cross-entropy.

    Returns:
        A scalar, never negative.
    """
    log_odds = _log_odds(logits, labels)
    cross_entropy = -F.logsigmoid(log_odds)
    weight = torch.exp(gamma * F.logsigmoid(-log_odds))
    return (weight * cross_entropy).mean()


class SynthesisObjective:
    """``bns_weight * BNS + beta * mean[d^gamma * CE]`` (HAST).

    With ``gamma = 0`` it is the generator loss of GDFQ.

    Args:
        cross_entropy_weight: beta.
        gamma: exponent of the difficulty; zero weighs every sample the same.
        bns_weight: weight of the batch-norm statistics loss.
    """

    def __init__(self, cross_entropy_weight: float, gamma: float, bns_weight: float) -> None:
        self.cross_entropy_weight = cross_entropy_weight
        self.gamma = gamma
        self.bns_weight = bns_weight

    def __call__(
        self, logits: Tensor, labels: Tensor, statistics: Sequence[BatchNormStatistics]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss to minimize and its two unweighted parts, detached, for the log.

        The second is called ``cross_entropy`` where no sample weighs more than another.
        """
        bns = batch_norm_statistics_loss(statistics)
        hard = hardness_weighted_cross_entropy(logits, labels, self.gamma)
        loss = self.bns_weight * bns + self.cross_entropy_weight * hard
        name = "hard_cross_entropy" if self.gamma else "cross_entropy"
        return loss, {"bns": bns.detach(), name: hard.detach()}
