from __future__ import annotations

import torch

from hast_lightning.core.ensemble import mixture


def test_the_mixture_is_the_weighted_mean_of_the_logits() -> None:
    answers, weights = torch.randn(3, 4, 5), torch.tensor([0.5, 0.0, 0.25])
    expected = (0.5 * answers[0] + 0.25 * answers[2]) / 0.75
    torch.testing.assert_close(mixture(answers, weights), expected)


def test_equal_weights_are_the_mean_whatever_their_scale() -> None:
    answers = torch.randn(4, 3, 5)
    for scale in (1.0, 0.01, 1e-30):
        mixed = mixture(answers, torch.full((4,), scale))
        torch.testing.assert_close(mixed, answers.mean(dim=0))


def test_one_member_answers_bit_for_bit_as_it_does_alone() -> None:
    answers = torch.randn(1, 7, 5)
    for weight in (1.0, 0.3, 0.01):
        assert torch.equal(mixture(answers, torch.tensor([weight])), answers[0])


def test_the_mixture_has_the_precision_of_the_logits() -> None:
    assert mixture(torch.ones(2, 3, 4, dtype=torch.bfloat16), torch.ones(2)).dtype == torch.bfloat16
