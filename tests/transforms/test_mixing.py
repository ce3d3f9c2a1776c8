"""Mixtures of pairs: shares, partners, targets, and which images are left as they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hast_lightning.core.batch import Batch
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ConfigurationError
from hast_lightning.models.teacher import FrozenTeacher
from hast_lightning.transforms.mixing import MixPairs, mixed


def mix(**settings: object) -> MixPairs:
    torch.manual_seed(0)
    made = MixPairs(**settings)  # type: ignore[arg-type]
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 8))
    teacher = FrozenTeacher(PretrainedNetwork(network, "any", (1, 2, 2), 8, (0.5,), (0.5,), ""))
    made.bind(teacher, teacher)
    return made


def test_a_mixture_is_that_of_the_shares() -> None:
    values, partners = torch.randn(3, 2, 2), torch.randn(3, 2, 2)
    shares = torch.tensor([1.0, 0.5, 0.25])
    each = zip(shares, values, partners, strict=True)
    expected = torch.stack([s * value + (1 - s) * partner for s, value, partner in each])
    torch.testing.assert_close(mixed(values, partners, shares), expected)


def test_every_image_keeps_the_larger_share_and_has_one_partner() -> None:
    """One-hot images say what a mixture is made of."""
    images = F.one_hot(torch.arange(8), 8).float().view(8, 1, 2, 4)
    batch = mix()(Batch(images, torch.arange(8)))
    shares = batch.inputs.flatten(1)
    torch.testing.assert_close(shares.sum(1), torch.ones(8))
    assert (shares.diagonal() >= 0.5).all()
    assert ((shares > 0).sum(1) <= 2).all()
    assert len(shares.diagonal().unique()) > 4
    assert torch.equal(batch.targets, torch.arange(8))  # type: ignore[arg-type]


def test_targets_are_mixed_as_the_images_are() -> None:
    images = F.one_hot(torch.arange(8), 8).float().view(8, 1, 2, 4)
    batch = mix(labels=True)(Batch(images, torch.arange(8)))
    assert batch.targets is not None
    torch.testing.assert_close(batch.targets, batch.inputs.flatten(1))


def test_images_with_soft_targets_can_be_left_alone() -> None:
    images = F.one_hot(torch.arange(8), 8).float().view(8, 1, 2, 4)
    targets = F.one_hot(torch.arange(8), 8).float()
    targets[4:] = 0.125
    batch = mix(labels=True, easy_only=True)(Batch(images, targets))
    assert batch.targets is not None
    torch.testing.assert_close(batch.inputs[4:], images[4:])
    torch.testing.assert_close(batch.targets[4:], targets[4:])
    assert not torch.equal(batch.inputs[:4], images[:4])
    assert batch.inputs[:4].flatten(1)[:, 4:].abs().sum() == 0


def test_a_mixture_passes_gradients_to_both_images() -> None:
    images = torch.randn(8, 1, 2, 2, requires_grad=True)
    mix()(Batch(images)).inputs.sum().backward()
    assert images.grad is not None
    torch.testing.assert_close(images.grad.sum(), torch.tensor(32.0))


def test_a_distribution_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="alpha"):
        MixPairs(alpha=0.0)
