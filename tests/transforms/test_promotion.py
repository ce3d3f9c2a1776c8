"""Sample difficulty promotion."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from hast_lightning.core.batch import Batch
from hast_lightning.transforms.promotion import Promotion, promote


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from([0.0, 0.01, 0.5]))
def test_every_pixel_moves_by_eps_along_the_sign(seed: int, eps: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, 3, 4, 4, generator=generator)
    gradient = torch.randn(2, 3, 4, 4, generator=generator)
    gradient[0, 0] = 0
    harder = promote(images, gradient, eps)
    torch.testing.assert_close(harder - images, eps * gradient.sign(), rtol=0, atol=1e-6)
    assert torch.equal(harder[0, 0], images[0, 0])  # no gradient, no step


def test_the_images_are_left_and_the_result_starts_a_new_graph() -> None:
    images = torch.randn(1, 1, 2, 2, requires_grad=True)
    before = images.detach().clone()
    harder = promote(images, torch.ones(1, 1, 2, 2), 0.25)
    assert not harder.requires_grad
    assert torch.equal(images, before)
    assert harder.data_ptr() != images.data_ptr()


def test_a_small_step_makes_images_harder() -> None:
    torch.manual_seed(0)
    images = torch.randn(8, 6, requires_grad=True)
    weight, labels = torch.randn(6, 4), torch.arange(8) % 4
    loss = F.cross_entropy(images @ weight, labels)
    loss.backward()
    assert images.grad is not None
    harder = promote(images, images.grad, 0.01)
    assert F.cross_entropy(harder @ weight, labels) > loss


def test_the_transform_keeps_labels_and_weights() -> None:
    batch = Batch(torch.randn(2, 1, 2, 2), torch.arange(2), torch.rand(2))
    gradient = torch.randn(2, 1, 2, 2)
    harder = Promotion(eps=0.25)(batch, gradient)
    assert torch.equal(harder.inputs, promote(batch.inputs, gradient, 0.25))
    assert harder.targets is batch.targets and harder.weights is batch.weights
