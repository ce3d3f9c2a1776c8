"""Feature alignment against a plain reference, in value and in gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from hast_lightning.terms.channel_attention import (
    ChannelAttention,
    alignment_losses,
    channel_attention,
)
from tests.parts import seen

few = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 2**16)
shapes = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5))


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain_attention(features: Tensor) -> Tensor:
    return F.normalize(features.pow(2).mean((2, 3)), dim=1)


@few
@given(shapes, seeds)
def test_attention_equals_the_plain_reference_in_value_and_gradient(
    shape: tuple[int, ...], seed: int
) -> None:
    ours, plain = (noise(shape, seed).requires_grad_() for _ in range(2))
    upstream = noise(shape[:2], seed + 1)
    actual, expected = channel_attention(ours), plain_attention(plain)
    torch.testing.assert_close(actual, expected)
    actual.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(ours.grad, plain.grad)


@few
@given(shapes, seeds)
def test_every_image_has_an_attention_of_length_one(shape: tuple[int, ...], seed: int) -> None:
    attention = channel_attention(noise(shape, seed))
    assert attention.shape == shape[:2]
    assert (attention >= 0).all()
    torch.testing.assert_close(attention.norm(dim=1), torch.ones(shape[0]))


@few
@given(shapes, seeds, st.lists(st.floats(0.01, 100), min_size=4, max_size=4))
def test_the_scale_of_an_image_and_its_sign_do_not_matter(
    shape: tuple[int, ...], seed: int, factors: list[float]
) -> None:
    features = noise(shape, seed)
    scaled = features * -torch.tensor(factors[: shape[0]]).view(-1, 1, 1, 1)
    torch.testing.assert_close(channel_attention(scaled), channel_attention(features))


@few
@given(seeds)
def test_where_in_the_image_a_feature_lies_does_not_matter(seed: int) -> None:
    features = noise((2, 3, 4, 4), seed)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
    moved = features.flatten(2)[:, :, order].view_as(features)
    torch.testing.assert_close(channel_attention(moved), channel_attention(features))


def test_an_image_without_features_has_no_attention_and_a_finite_gradient() -> None:
    features = torch.zeros(2, 3, 4, 4, requires_grad=True)
    attention = channel_attention(features)
    assert (attention == 0).all()
    attention.sum().backward()
    assert features.grad is not None
    assert (features.grad == 0).all()


def test_memory_format_makes_no_difference() -> None:
    features = noise((2, 3, 4, 5), 0)
    last = features.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(channel_attention(last), channel_attention(features))


def test_half_precision_features_are_averaged_in_float32() -> None:
    features = noise((2, 3, 8, 8), 0).bfloat16().requires_grad_()
    attention = channel_attention(features)
    assert attention.dtype == torch.float32
    torch.testing.assert_close(attention, plain_attention(features.float()))
    attention[:, 0].sum().backward()
    assert features.grad is not None
    assert features.grad.dtype == torch.bfloat16


def test_it_refuses_to_be_differentiated_twice() -> None:
    features = noise((1, 2, 3, 3), 0).requires_grad_()
    first = torch.autograd.grad(channel_attention(features)[0, 0], features, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def blocks(seed: int) -> list[Tensor]:
    return [noise(shape, seed + i) for i, shape in enumerate([(3, 4, 6, 6), (3, 8, 3, 3)])]


@few
@given(seeds)
def test_the_losses_are_the_mean_square_errors_at_every_block(seed: int) -> None:
    student, teacher = blocks(seed), blocks(seed + 7)
    losses = alignment_losses(student, teacher)
    plain = [
        (plain_attention(s) - plain_attention(t)).square().mean()
        for s, t in zip(student, teacher, strict=True)
    ]
    torch.testing.assert_close(losses, torch.stack(plain))
    torch.testing.assert_close(alignment_losses(teacher, student), losses)
    assert not alignment_losses(student, student).any()


def test_gradients_reach_both_networks() -> None:
    student, teacher = ([b.requires_grad_() for b in blocks(seed)] for seed in (0, 9))
    alignment_losses(student, teacher).sum().backward()
    for features in (*student, *teacher):
        assert features.grad is not None
        assert features.grad.abs().max() > 0


def test_blocks_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        alignment_losses(blocks(0), blocks(1)[:1])


def test_weights_count_samples_more_than_once() -> None:
    student, teacher = blocks(0), blocks(7)
    counts = torch.tensor([2, 0, 1])
    twice = ([b.repeat_interleave(counts, 0) for b in features] for features in (student, teacher))
    weighted = alignment_losses(student, teacher, 0.5 * counts)
    torch.testing.assert_close(weighted, alignment_losses(*twice))


@pytest.mark.parametrize("weighted", [False, True])
def test_the_term_gives_the_loss_of_each_block(weighted: bool) -> None:
    student, teacher = blocks(0), blocks(7)
    weights = torch.arange(3.0) if weighted else None
    term = ChannelAttention()
    term._taps = ("first", "second")
    values = [dict(zip(term._taps, features, strict=True)) for features in (student, teacher)]
    logits = torch.zeros(3, 2)
    given = seen(logits, logits, weights=weights, of_student=values[0], of_teacher=values[1])
    assert torch.equal(term(given), alignment_losses(student, teacher, weights))


def test_vectors_have_one_place() -> None:
    vectors = noise((3, 5), 0)
    torch.testing.assert_close(
        channel_attention(vectors), plain_attention(vectors[:, :, None, None])
    )
