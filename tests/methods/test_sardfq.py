"""Priors of attention: sums, seeds, halves, and a run that is resumed."""

from __future__ import annotations

from pathlib import Path

import torch

from hast_lightning.core.batch import Batch, Progress, Seen
from hast_lightning.methods.sardfq import AttentionPrior, attention_priors, patch_attention
from tests.small_runs import assert_same_end_from_everywhere, small
from tests.transformers import WORDS, images, teacher


def test_priors_and_attention_sum_to_one() -> None:
    priors = attention_priors((4, 2), 5, torch.Generator().manual_seed(0))
    assert priors.shape == (4, 2, 25)
    torch.testing.assert_close(priors.sum(-1), torch.ones(4, 2))
    assert (priors >= 0).all()
    assert not torch.equal(priors[0, 0], priors[0, 1])
    for tokens, patches in ((17, 16), (16, 16)):
        probabilities = torch.softmax(torch.randn(3, 2, tokens, tokens), -1)
        found = patch_attention(probabilities)
        assert found.shape == (3, 2, patches)
        torch.testing.assert_close(found.sum(-1), torch.ones(3, 2))
    with_class = torch.softmax(torch.randn(3, 2, 17, 17), -1)
    row = with_class[:, :, 0, 1:]
    torch.testing.assert_close(patch_attention(with_class), row / row.sum(-1, keepdim=True))


def test_the_upper_half_counts_by_depth_against_the_same_priors() -> None:
    network, x = teacher(), images()
    term = AttentionPrior()
    needs = term.bind(network, network)
    assert len(needs.teacher) == 1  # the second of two
    trace = network.trace(x, needs.teacher)
    seen = Seen(Batch(x), trace, None, Progress("synthesis", 1, 1))
    attention = patch_attention(trace.values[needs.teacher[0]])
    generator = torch.Generator().manual_seed(int(term.seed))
    prior = attention_priors((4, 2), 4, generator)
    torch.testing.assert_close(term(seen), (attention - prior).square().mean()[None])
    assert torch.equal(term(seen), term(seen))
    before = term(seen)
    term.finished(Batch(x))
    assert not torch.equal(term(seen), before)
    other = AttentionPrior()
    other.bind(network, network)
    other.load_state_dict(term.state_dict())
    assert torch.equal(term(seen), other(seen))


def test_a_run_is_resumed_with_the_same_numbers(tmp_path: Path) -> None:
    words = ("method=sardfq_style", "quantizer=transformer", *WORDS)
    assert_same_end_from_everywhere(small(*words), tmp_path, 3)
