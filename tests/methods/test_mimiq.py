"""Similarity of heads and structure of attention: plain references, ends, a run."""

from __future__ import annotations

import torch

from hast_lightning.core.batch import Batch, Progress, Seen
from hast_lightning.methods.mimiq import (
    C1,
    C2,
    AttentionStructure,
    HeadSSIM,
    head_similarity,
    structure_loss,
)
from tests.transformers import images, teacher


def test_ssim_of_one_pair() -> None:
    scores = torch.randn(1, 2, 17, 17)
    found = head_similarity(scores)
    assert found.shape == (1, 16, 2, 2)
    torch.testing.assert_close(found.diagonal(dim1=-2, dim2=-1), torch.ones(1, 16, 2))
    a, b = (scores[0, head, 1, 1:] for head in (0, 1))
    a, b = ((x - x.min()) / (x.max() - x.min()) for x in (a, b))
    covariance = ((a - a.mean()) * (b - b.mean())).mean()
    top = (2 * a.mean() * b.mean() + C1) * (2 * covariance + C2)
    variances = a.var(correction=0) + b.var(correction=0)
    expected = top / ((a.mean() ** 2 + b.mean() ** 2 + C1) * (variances + C2))
    torch.testing.assert_close(found[0, 0, 0, 1], expected)


def test_alike_heads_have_no_loss_whatever_their_scale() -> None:
    head = torch.randn(2, 1, 16, 16)
    found = head_similarity(torch.cat((head, 3 * head + 1), 1))
    torch.testing.assert_close(found, torch.ones_like(found), atol=1e-4, rtol=0)


def test_structure_is_over_patches_for_each_channel() -> None:
    student, teacher_ = torch.randn(2, 2, 17, 4), torch.randn(2, 2, 17, 4)
    assert structure_loss(teacher_, teacher_).abs().max() < 1e-5
    moved = teacher_ + torch.randn(2, 2, 1, 4)
    assert structure_loss(moved, teacher_).abs().max() < 1e-4
    s, t = student[0, 1, 1:, 2], teacher_[0, 1, 1:, 2]
    covariance = ((s - s.mean()) * (t - t.mean())).mean()
    expected = (2 * covariance + C2) / (s.var(correction=0) + t.var(correction=0) + C2)
    only = structure_loss(student[:1, 1:2, :, 2:3], teacher_[:1, 1:2, :, 2:3])
    torch.testing.assert_close(1 - only[0], expected)


def test_terms_look_at_scores_and_at_outputs() -> None:
    network = teacher()
    for term in (HeadSSIM(), AttentionStructure()):
        needs = term.bind(network, network)
        trace = network.trace(images(), needs.teacher)
        loss = term(Seen(Batch(images()), trace, trace, Progress("x", 1, 1)))
        if isinstance(term, AttentionStructure):
            assert loss.abs() < 1e-5
        else:
            expected = [1 - head_similarity(trace.values[n]).square() for n in needs.teacher]
            torch.testing.assert_close(loss, torch.stack(expected).mean())
