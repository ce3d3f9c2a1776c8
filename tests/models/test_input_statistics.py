from __future__ import annotations

import torch
from torch import nn

from hast_lightning.core.network import slowed
from hast_lightning.models.input_statistics import (
    input_statistics,
    statistics_mismatch,
)
from tests.features import MEAN, SHAPE, STD, features, loaded, network


def test_the_mismatch_is_that_of_every_batch_norm() -> None:
    net = network()
    inputs = torch.randn(6, *SHAPE)
    maps = net[0](inputs)
    seen = [maps, net[3](net[2](net[1](maps)))]
    expected = []
    for values, layer in zip(seen, (net[1], net[4]), strict=True):
        assert isinstance(layer, nn.BatchNorm2d)
        assert layer.running_mean is not None and layer.running_var is not None
        mean, var = values.mean((0, 2, 3)), values.var((0, 2, 3), correction=0)
        scale = layer.running_var + layer.eps
        distance = (mean - layer.running_mean) ** 2 / scale
        expected.append((distance + torch.log((var + layer.eps) / scale) ** 2).mean())
    torch.testing.assert_close(statistics_mismatch(net, inputs), torch.stack(expected).mean())
    assert statistics_mismatch(net, features(256)) < 0.1 < statistics_mismatch(net, inputs)


def test_slow_noise_is_standard_and_slow() -> None:
    noise = slowed(torch.randn(64, 2, 20, 3, generator=torch.Generator().manual_seed(0)))
    std, mean = torch.std_mean(noise, (0, 2), correction=0)
    torch.testing.assert_close(mean, torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(std, torch.ones(2, 3))
    steps = noise.diff(dim=2).square().mean()
    assert steps < 1 < torch.randn(64, 2, 20, 3).diff(dim=2).square().mean()
    # Means of samples differ, where a picture's is always 0.
    assert noise.mean(dim=2).std() > 0.3


def test_the_scale_of_every_coefficient_is_learned_without_data() -> None:
    center, spread = loaded().center, loaded().spread
    assert center is not None and spread is not None
    assert center.shape == spread.shape == (1, 1, 5)
    error = (center.flatten() - torch.tensor(MEAN)).abs() / torch.tensor(STD)
    ratio = spread.flatten() / torch.tensor(STD)
    assert (error < 1).all(), error
    assert ((ratio > 0.5) & (ratio < 2)).all(), ratio


def test_random_numbers_and_gradients_of_the_network_are_left_alone() -> None:
    net, state = network(), torch.get_rng_state()
    input_statistics(net, SHAPE)
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(layer._forward_pre_hooks for layer in net.modules())


def test_a_network_without_batch_norms_says_nothing() -> None:
    assert input_statistics(nn.Sequential(nn.Flatten(), nn.Linear(55, 2)), SHAPE) == (None, None)
