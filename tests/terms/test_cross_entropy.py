"""Cross-entropies against plain references, gradients and invariants; weights and soft labels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hast_lightning.core.term import Term
from hast_lightning.errors import ConfigurationError
from hast_lightning.terms.cross_entropy import (
    CrossEntropy,
    HardCrossEntropy,
    TeacherCrossEntropy,
    cross_entropy,
    difficulty,
    hardness_weighted_cross_entropy,
)
from tests.parts import seen


def random_batch(seed: int, count: int = 12, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator, dtype=torch.float64) * 3
    return logits, torch.randint(classes, (count,), generator=generator)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    count, classes = draw(st.integers(1, 6)), draw(st.integers(2, 7))
    values = st.floats(-1e3, 1e3, width=32)
    logits = draw(st.lists(values, min_size=count * classes, max_size=count * classes))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    return torch.tensor(logits).reshape(count, classes), torch.tensor(labels)


def test_difficulty_is_one_minus_the_probability_of_the_label() -> None:
    logits, labels = random_batch(0)
    expected = 1 - logits.softmax(1)[torch.arange(len(labels)), labels]
    torch.testing.assert_close(difficulty(logits, labels), expected)


def test_difficulty_keeps_its_digits_where_the_probability_rounds_to_one() -> None:
    logits = torch.tensor([[30.0, 0.0, 0.0]])
    assert logits.softmax(1)[0, 0] == 1
    expected = 2 * torch.exp(torch.tensor([-30.0]))
    torch.testing.assert_close(difficulty(logits, torch.tensor([0])), expected, rtol=1e-5, atol=0)


@given(batches())
@settings(deadline=None)
def test_difficulty_lies_in_the_unit_interval(batch: tuple[Tensor, Tensor]) -> None:
    result = difficulty(*batch)
    assert result.shape == batch[1].shape
    assert ((result >= 0) & (result <= 1)).all()


@given(batches(), st.sampled_from([0.0, 0.5, 1.0, 2.0]))
@settings(deadline=None)
def test_the_loss_is_finite_and_never_negative_nor_above_the_cross_entropy(
    batch: tuple[Tensor, Tensor], gamma: float
) -> None:
    loss = hardness_weighted_cross_entropy(*batch, gamma)
    assert 0 <= loss <= F.cross_entropy(*batch) * (1 + 1e-5) + 1e-5


@given(batches(), st.sampled_from([0.0, 0.5, 2.0]), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_of_samples_and_of_classes_does_not_matter(
    batch: tuple[Tensor, Tensor], gamma: float, random: object
) -> None:
    logits, labels = batch
    rows = list(range(logits.shape[0]))
    columns = list(range(logits.shape[1]))
    random.shuffle(rows)  # type: ignore[attr-defined]
    random.shuffle(columns)  # type: ignore[attr-defined]
    moved_labels = torch.tensor([columns.index(int(label)) for label in labels[rows]])
    moved = hardness_weighted_cross_entropy(logits[rows][:, columns], moved_labels, gamma)
    torch.testing.assert_close(moved, hardness_weighted_cross_entropy(logits, labels, gamma))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_loss_equals_the_formula(gamma: float) -> None:
    logits, labels = random_batch(1)
    p = logits.softmax(1)[torch.arange(len(labels)), labels]
    expected = ((1 - p) ** gamma * -p.log()).mean()
    torch.testing.assert_close(hardness_weighted_cross_entropy(logits, labels, gamma), expected)


def test_gamma_zero_is_cross_entropy_with_its_gradient() -> None:
    logits, labels = random_batch(2)
    ours, reference = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = hardness_weighted_cross_entropy(ours, labels, 0.0)
    expected = F.cross_entropy(reference, labels)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, reference.grad)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradient_flows_through_the_weight_too(gamma: float) -> None:
    logits, labels = random_batch(3, count=4)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda value: hardness_weighted_cross_entropy(value, labels, gamma), (logits,)
    )


@pytest.mark.parametrize("odds", [20.0, 90.0, 250.0, 1e4])
def test_gradient_is_finite_where_the_label_is_certain(odds: float) -> None:
    logits = torch.tensor([[odds, 0.0, 0.0], [0.0, 1.0, 0.0]], requires_grad=True)
    loss = hardness_weighted_cross_entropy(logits, torch.tensor([0, 1]), 0.5)
    loss.backward()
    assert logits.grad is not None
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert logits.grad[0].abs().max() < 1e-3  # nothing left to learn from the certain sample
    assert logits.grad[1].abs().max() > 1e-2


def test_half_precision_logits_give_a_float32_loss() -> None:
    logits, labels = random_batch(4)
    loss = hardness_weighted_cross_entropy(logits.bfloat16(), labels, 2.0)
    assert loss.dtype == torch.float32
    expected = hardness_weighted_cross_entropy(logits.bfloat16().float(), labels, 2.0)
    torch.testing.assert_close(loss, expected)


# --- weights and soft labels -----------------------------------------------------------------


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return F.one_hot(labels, classes).double()


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("factor", [1.0, 7.0])
def test_weights_count_samples_more_than_once(soft: bool, factor: float) -> None:
    logits, labels = random_batch(5)
    counts = torch.arange(len(labels)) % 4
    targets = one_hot(labels, 5) if soft else labels
    loss = cross_entropy(logits, targets, factor * counts.double())
    repeated = cross_entropy(
        logits.repeat_interleave(counts, 0), targets.repeat_interleave(counts, 0)
    )
    torch.testing.assert_close(loss, repeated, check_dtype=False)


def test_detached_the_weight_is_a_constant() -> None:
    logits, labels = random_batch(4)
    logits.requires_grad_()
    p = logits.softmax(1).gather(1, labels[:, None]).squeeze(1)
    expected = ((1 - p).detach() * -p.log()).mean()
    loss = hardness_weighted_cross_entropy(logits, labels, 1.0, detached=True)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)
    )
    term = HardCrossEntropy(gamma=1.0, detached=True)(seen(logits, targets=labels))
    whole = HardCrossEntropy(gamma=1.0)(seen(logits, targets=labels))
    assert torch.equal(term, whole)
    both = [torch.autograd.grad(each, logits)[0] for each in (term, whole)]
    assert not torch.allclose(*both)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_weights_multiply_the_difficulty(gamma: float) -> None:
    logits, labels = random_batch(6)
    weights = torch.zeros(len(labels), dtype=torch.float64)
    weights[3] = 5
    expected = hardness_weighted_cross_entropy(logits[3:4], labels[3:4], gamma)
    actual = hardness_weighted_cross_entropy(logits, labels, gamma, weights)
    torch.testing.assert_close(actual, expected)
    assert hardness_weighted_cross_entropy(logits, labels, gamma, 0 * weights) == 0


def test_soft_labels_equal_the_formula() -> None:
    logits, _ = random_batch(7)
    targets = random_batch(8)[0].softmax(1)
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(cross_entropy(logits, targets), expected, check_dtype=False)


# --- the terms -------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", [TeacherCrossEntropy, CrossEntropy])
def test_each_term_is_of_its_own_network(kind: type[Term], weighted: bool, soft: bool) -> None:
    (of_teacher, labels), (of_student, _) = random_batch(9), random_batch(10)
    targets = one_hot(labels, 5) if soft else labels
    weights = torch.rand(len(labels), dtype=torch.float64) if weighted else None
    logits = of_teacher if kind is TeacherCrossEntropy else of_student
    actual = kind()(seen(of_teacher, of_student, targets=targets, weights=weights))
    expected = cross_entropy(logits, targets, weights)
    torch.testing.assert_close(actual, expected, check_dtype=False)


def test_hardness_is_switched_off_by_its_switch_or_by_gamma_zero() -> None:
    logits, labels = random_batch(11)
    given = seen(logits, targets=labels)
    plain = F.cross_entropy(logits, labels)
    torch.testing.assert_close(HardCrossEntropy(by_difficulty=False)(given), plain)
    torch.testing.assert_close(HardCrossEntropy(gamma=0.0)(given), plain)
    expected = hardness_weighted_cross_entropy(logits, labels, 2.0)
    torch.testing.assert_close(HardCrossEntropy()(given), expected)


def test_a_negative_gamma_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^gamma=-1 must be at least 0"):
        HardCrossEntropy(gamma=-1)
