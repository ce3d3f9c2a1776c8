"""Sensitivity of a layer: how much a network suffers from rounding that layer alone.

Every measure is zero where nothing is rounded, and larger is worse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hast_lightning.graph.outputs import by_position

LOWEST_COSINE = -1.0


def divergence(float_logits: Tensor, logits: Tensor) -> Tensor:
    """Return ``mean over N of KL(softmax(float_logits) || softmax(logits))``, a scalar.

    Source: ZeroQ (Cai et al., CVPR 2020), equation of the sensitivity.

    Args:
        float_logits: Of the network with float weights, (N, classes).
        logits: Of the network with rounded weights, (N, classes).
    """
    before, after = (each.double().log_softmax(dim=1) for each in (float_logits, logits))
    return F.kl_div(after, before, reduction="batchmean", log_target=True).clamp_min(0)


def squared_error(float_logits: Tensor, logits: Tensor) -> Tensor:
    """Return ``mean over N and classes of (logits - float_logits)^2``, a scalar.

    Unlike the divergence it still tells layers apart that each ruin the network.

    Args:
        float_logits: (N, classes).
        logits: (N, classes).
    """
    return (logits.double() - float_logits.double()).square().mean()


def margin_lost(float_logits: Tensor, logits: Tensor) -> Tensor:
    """Return what rounding takes from the mean margin between classes, a scalar.

    ``margin = mean over N of cos(f, c_y) - max over k != y of cos(f, c_k)``, where ``f`` are
    logits without their mean over classes, ``y`` is the float network's answer and ``c_k`` is the
    mean of the float network's ``f`` of class ``k``. Classes that nothing is put into do not count.

    Source: the idea of SEAM (Tang et al., ACM MM 2023); this form is ours. Logits stand for
    features, so that the last layer has a sensitivity, too.

    Args:
        float_logits: (N, classes).
        logits: (N, classes).
    """
    float_logits, logits = by_position(float_logits), by_position(logits)
    before, after = (_directions(each) for each in (float_logits, logits))
    labels = float_logits.argmax(dim=1)
    members = F.one_hot(labels, float_logits.shape[1]).to(before.dtype)
    centres = F.normalize(members.T @ before, dim=1)
    empty = members.sum(dim=0) == 0
    return _margin(before, centres, empty, labels) - _margin(after, centres, empty, labels)


def _directions(logits: Tensor) -> Tensor:
    logits = logits.double()
    return F.normalize(logits - logits.mean(dim=1, keepdim=True), dim=1)


def _margin(directions: Tensor, centres: Tensor, empty: Tensor, labels: Tensor) -> Tensor:
    cosines = directions @ centres.T
    own = cosines.gather(1, labels[:, None])
    others = cosines.masked_fill(empty, LOWEST_COSINE).scatter(1, labels[:, None], LOWEST_COSINE)
    return (own.squeeze(1) - others.amax(dim=1)).mean()


Measure = Callable[[Tensor, Tensor], Tensor]
"""From float logits and logits, (N, classes) both, to a scalar."""


def fisher_diagonal(
    network: nn.Module,
    weights: Sequence[Tensor],
    batches: Sequence[Tensor],
    generator: torch.Generator,
) -> list[Tensor]:
    """Return the diagonal of the Fisher matrix of one sample by each weight.

    It is the mean over samples of the diagonal of ``J^T (diag(p) - p p^T) J``, where ``J`` is the
    derivative of the logits and ``p`` their softmax. A random vector ``v`` with that covariance,
    ``v = sqrt(p) e - p sum(sqrt(p) e)`` with signs ``e``, gives it by one backward pass a batch:
    the mean of ``(J^T v)^2``. Labels drawn from ``p``, which are usual, have the same mean; but a
    network that is sure of its answers hardly ever draws another one, and those carry all of it.

    Args:
        network: In evaluation mode.
        weights: Parameters of the network.
        batches: Inputs, (n, ...) each.
        generator: Draws the signs, on the CPU.

    Returns:
        For each of ``weights`` a tensor of its shape.
    """
    sums = [torch.zeros_like(weight) for weight in weights]
    total = sum(len(inputs) for inputs in batches)
    for inputs in batches:
        with torch.enable_grad():
            logits = network(inputs).float()
            chances = logits.detach().softmax(dim=1)
            signs = 2.0 * torch.randint(2, chances.shape, generator=generator) - 1
            drawn = chances.sqrt() * signs.to(chances.device)
            drawn = drawn - chances * drawn.sum(dim=1, keepdim=True)
            gradients = torch.autograd.grad((drawn * logits).sum(), list(weights))
        for whole, gradient in zip(sums, gradients, strict=True):
            whole += gradient.square() / total
    return sums


def fisher_sensitivity(fisher: Tensor, weight: Tensor, rounded: Tensor) -> Tensor:
    """Return ``1/2 * sum of fisher * (rounded - weight)^2``, a scalar.

    It is the second-order estimate of :func:`divergence`, elementwise where HAWQ-V2 (Dong et al.,
    NeurIPS 2020) takes the trace of the Hessian times the norm of the error.

    Args:
        fisher: Diagonal of the Fisher matrix, of the shape of ``weight``.
        weight: (out_channels, ...).
        rounded: Of the same shape.
    """
    return 0.5 * (fisher.double() * (rounded.double() - weight.double()).square()).sum()
