"""MimiQ (Choi et al., AAAI 2025), as MaskAQ's released code (ICML 2026) contains it."""

from __future__ import annotations

import torch
from torch import Tensor

from hast_lightning.core.batch import Needs, Seen, weighted_mean
from hast_lightning.core.network import Network
from hast_lightning.core.part import part
from hast_lightning.core.term import Term
from hast_lightning.graph.attention_nodes import patch_scores, patches, require_attentions

C1, C2 = 0.01**2, 0.03**2
"""Constants of SSIM for values between 0 and 1."""
NARROWEST = 1e-8
"""Smallest spread of a map that is divided by."""


def head_similarity(scores: Tensor) -> Tensor:
    """Return SSIM between all pairs of heads, (N, queries, heads, heads), float32.

    Each head's row of scores is a map over patches, normalized to 0..1. SSIM is that of the whole
    map: ``(2 m m' + C1)(2 cov + C2) / ((m^2 + m'^2 + C1)(var + var' + C2))``. It is 1 for a head
    with itself.

    Source: MimiQ (Choi et al., AAAI 2025), in MaskAQ's released code.

    Args:
        scores: ``q k^T`` (N, heads, tokens, tokens), before the softmax.
    """
    maps = patch_scores(scores).float().transpose(1, 2)
    low, high = maps.amin(dim=-1, keepdim=True), maps.amax(dim=-1, keepdim=True)
    maps = (maps - low) / (high - low).clamp_min(NARROWEST)
    mean = maps.mean(dim=-1, keepdim=True)
    centred = maps - mean
    covariance = centred @ centred.transpose(-2, -1) / maps.shape[-1]
    variance = covariance.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    square = mean.square()
    light = (2 * mean @ mean.transpose(-2, -1) + C1) / (square + square.transpose(-2, -1) + C1)
    return light * (2 * covariance + C2) / (variance + variance.transpose(-2, -1) + C2)


def structure_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return ``1 - mean of (2 cov + C2) / (var_T + var_S + C2)`` for each sample, (N,), float32.

    Covariance and variances are over patches, for each head and channel.

    Source: MimiQ (Choi et al., AAAI 2025), in MaskAQ's released code.

    Args:
        student: What an attention puts out, (N, heads, tokens, d).
        teacher: Of the same shape.
    """
    s, t = (patches(each).float() for each in (student, teacher))
    s, t = s - s.mean(dim=2, keepdim=True), t - t.mean(dim=2, keepdim=True)
    covariance = (s * t).mean(dim=2)
    variances = s.square().mean(dim=2) + t.square().mean(dim=2)
    return 1 - ((2 * covariance + C2) / (variances + C2)).mean(dim=(1, 2))


@part("term", "head_ssim")
class HeadSSIM(Term):
    """``mean of 1 - SSIM^2`` between the heads of each attention: all look at the same patches.

    Source: MimiQ (Choi et al., AAAI 2025), in MaskAQ's released code. Attentions count alike.
    """

    title = "Distance between heads"

    def bind(self, teacher: Network, student: Network) -> Needs:
        """Find the attentions.

        Raises:
            ModelError: there are none over a square grid of patches.
        """
        self._nodes = tuple(a.scores for a in require_attentions(teacher, "head_ssim"))
        return Needs(teacher=self._nodes)

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss."""
        values = [head_similarity(seen.teacher.values[name]) for name in self._nodes]
        return torch.stack([(1 - each.square()).mean() for each in values]).mean()


@part("term", "attention_structure")
class AttentionStructure(Term):
    """What attentions put out has the structure over patches that the teacher's has.

    ``1 - mean of (2 cov + C2) / (var_T + var_S + C2)`` over heads and channels.

    Source: MimiQ (Choi et al., AAAI 2025), in MaskAQ's released code; its weights of tokens are not
    here.
    """

    weight: float = 10.0
    """What the term is multiplied by; 0 leaves it out."""

    title = "Structure of attention"

    def bind(self, teacher: Network, student: Network) -> Needs:
        """Find the attentions.

        Raises:
            ModelError: there are none over a square grid of patches.
        """
        found = require_attentions(teacher, "attention_structure", outputs=True)
        self._nodes = tuple(each.output for each in found)
        return Needs(teacher=self._nodes, student=self._nodes)

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss, the mean over attentions."""
        assert seen.student is not None
        losses = [
            structure_loss(seen.student.values[name], seen.teacher.values[name])
            for name in self._nodes
        ]
        return weighted_mean(torch.stack(losses).mean(dim=0), seen.batch.weights)
