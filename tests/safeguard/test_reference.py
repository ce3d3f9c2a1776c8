from __future__ import annotations

import pytest
import torch
from torch import nn

from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.models.teacher import FrozenTeacher
from hast_lightning.models.zoo import load
from hast_lightning.safeguard import reference
from hast_lightning.safeguard.reference import (
    judging_leaves,
    reference_images,
    statistics_distance,
)
from tests.small_runs import small


def teacher() -> FrozenTeacher:
    return FrozenTeacher(load(small().model))


def test_reference_images_come_closer_to_the_statistics_and_are_always_the_same() -> None:
    network = teacher()
    before, random = reference_images(network, 32, 0), torch.random.get_rng_state()
    after = reference_images(network, 32, 30)
    assert torch.equal(random, torch.random.get_rng_state())
    distances = [statistics_distance(network, images) for images in (before, after)]
    assert distances[0] is not None
    assert distances[1] is not None
    assert distances[1] < 0.2 * distances[0]
    assert torch.equal(after, reference_images(network, 32, 30))
    assert not after.requires_grad


def test_a_network_without_batch_norms_is_judged_on_smooth_noise() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    pretrained = PretrainedNetwork(
        network, "bare", (3, 8, 8), 10, (0.0,) * 3, (1.0,) * 3, checksum="0" * 64
    )
    bare = FrozenTeacher(pretrained)
    images = reference_images(bare, 4, 10)
    assert torch.equal(images, reference_images(bare, 4, 0))
    assert statistics_distance(bare, images) is None


def test_large_images_are_matched_in_groups_that_fit_into_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = teacher()
    values = int(torch.tensor(network.pretrained.input_shape).prod())
    monkeypatch.setattr(reference, "VALUES_AT_ONCE", 16 * values)
    seen: list[int] = []
    trace = network.trace
    monkeypatch.setattr(
        network, "trace", lambda x, *a, **k: (seen.append(len(x)), trace(x, *a, **k))[1]
    )
    images = reference_images(network, 40, 3)
    assert seen == [16] * 6 + [8] * 3
    before, after = (
        statistics_distance(network, found) for found in (reference_images(network, 40, 0), images)
    )
    assert before is not None
    assert after is not None
    assert after < before


def test_pictures_of_leaves_are_the_same_for_every_run_and_leave_no_trace() -> None:
    network = load(small().model)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = judging_leaves(network, 5)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.shape == (5, *network.input_shape)
    torch.manual_seed(4)
    assert torch.equal(judging_leaves(network, 5), first)
