"""Knowledge distillation against the definition of the divergence, and its invariants."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hast_lightning.errors import ConfigurationError
from hast_lightning.terms.kl import KL, AdversarialKL, kl_divergence
from tests.parts import seen

few = settings(max_examples=30, deadline=None)
temperatures = st.sampled_from([0.5, 1.0, 4.0, 20.0])


def logits(seed: int, count: int = 6, classes: int = 5, scale: float = 4.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, classes, generator=generator)


def plain_divergence(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """``tau^2 / N * sum p_T log(p_T / p_S)`` in double precision, number by number."""
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p_s, p_t = ([math.exp(v / temperature) for v in row] for row in (s, t))
        for a, b in zip(p_s, p_t, strict=True):
            b /= sum(p_t)
            total += b * math.log(b / (a / sum(p_s)))
    return temperature**2 * total / len(student)


@few
@given(st.integers(0, 2**16), temperatures)
def test_it_equals_the_definition(seed: int, temperature: float) -> None:
    student, teacher = logits(seed), logits(seed + 1)
    expected = plain_divergence(student, teacher, temperature)
    actual = float(kl_divergence(student, teacher, temperature))
    assert actual == pytest.approx(expected, rel=1e-3, abs=1e-4)


@few
@given(st.integers(0, 2**16), temperatures)
def test_it_is_zero_at_agreement_and_positive_elsewhere(seed: int, temperature: float) -> None:
    student, teacher = logits(seed), logits(seed + 1)
    assert kl_divergence(teacher, teacher, temperature) == 0
    assert kl_divergence(student, teacher, temperature) > 0
    # Softmax does not see a number that is added to all logits of an image.
    shifted = teacher + torch.arange(6.0).unsqueeze(1)
    assert abs(float(kl_divergence(shifted, teacher, temperature))) < 1e-3


@few
@given(st.integers(0, 2**16), temperatures, st.integers(2, 12))
def test_the_mean_is_the_batch_mean_over_the_classes(
    seed: int, temperature: float, classes: int
) -> None:
    student, teacher = logits(seed, classes=classes), logits(seed + 1, classes=classes)
    mean = kl_divergence(student, teacher, temperature, "mean")
    batch_mean = kl_divergence(student, teacher, temperature, "batchmean")
    torch.testing.assert_close(mean, batch_mean / classes)
    torch.testing.assert_close(kl_divergence(student, teacher, temperature), batch_mean)


@pytest.mark.parametrize("temperature", [1.0, 20.0])
@pytest.mark.parametrize("which", ["student", "teacher"])
def test_the_gradient_agrees_with_finite_differences(which: str, temperature: float) -> None:
    student, teacher = logits(0, 2, 3, 1.0), logits(1, 2, 3, 1.0)
    varied = (student if which == "student" else teacher).requires_grad_()
    kl_divergence(student, teacher, temperature).backward()
    assert varied.grad is not None
    for i in range(2):
        for j in range(3):
            sides = []
            for step in (1e-3, -1e-3):
                moved = varied.detach().clone()
                moved[i, j] += step
                pair = (moved, teacher) if which == "student" else (student, moved)
                sides.append(plain_divergence(*(t.detach() for t in pair), temperature))
            slope = (sides[0] - sides[1]) / 2e-3
            assert float(varied.grad[i, j]) == pytest.approx(slope, rel=1e-2, abs=1e-3)


def test_certain_predictions_stay_finite() -> None:
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = kl_divergence(student, torch.tensor([[-1e4, 1e4, 0.0]]), 1.0)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_half_precision_logits_give_a_float32_loss() -> None:
    student, teacher = logits(2).bfloat16(), logits(3).bfloat16()
    loss = kl_divergence(student, teacher, 20.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, kl_divergence(student.float(), teacher.float(), 20.0))


@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
def test_weights_count_samples_more_than_once(reduction: str) -> None:
    student, teacher = logits(4), logits(5)
    counts = torch.tensor([0, 1, 2, 3, 0, 1])
    weighted = kl_divergence(student, teacher, 4.0, reduction, 0.5 * counts)
    repeated = kl_divergence(
        student.repeat_interleave(counts, 0), teacher.repeat_interleave(counts, 0), 4.0, reduction
    )
    torch.testing.assert_close(weighted, repeated)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_term_hands_on_its_settings_and_the_weights_of_the_batch(weighted: bool) -> None:
    student, teacher = logits(6), logits(7)
    weights = torch.arange(6.0) if weighted else None
    term = KL(temperature=3.0, reduction="mean", weight=9.0)
    expected = kl_divergence(student, teacher, 3.0, "mean", weights)
    assert torch.equal(term(seen(teacher, student, weights=weights)), expected)


def test_the_adversarial_term_is_large_where_the_two_agree_and_moves_through_both() -> None:
    student, teacher = logits(6).requires_grad_(), logits(7).requires_grad_()
    term = AdversarialKL()
    loss = term(seen(teacher, student))
    expected = -plain_divergence(student.detach(), teacher.detach(), 3.0)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(term(seen(teacher.detach(), teacher.detach()))) == pytest.approx(0, abs=1e-6)
    loss.backward()
    for moved in (student, teacher):
        assert moved.grad is not None and moved.grad.abs().sum() > 0
    assert student.grad is not None and teacher.grad is not None
    with torch.no_grad():
        further = student - 0.1 * student.grad, teacher - 0.1 * teacher.grad
    assert term(seen(further[1], further[0])) < loss.detach()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 must be greater than 0"),
        ({"reduction": "sum"}, "reduction='sum' is not one of: batchmean, mean"),
        ({"weight": -1.0}, "weight=-1.0 must be at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        KL(**settings)
