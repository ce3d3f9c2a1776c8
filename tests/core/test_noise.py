"""Noise that samples start from."""

from __future__ import annotations

import torch

from hast_lightning.core.network import SHARED, smoothed


def white(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_smooth_noise_has_the_scale_of_normalized_images() -> None:
    noise = smoothed(white(16, 3, 32, 24))
    assert noise.shape == (16, 3, 32, 24)
    assert noise.mean(dim=(2, 3)).abs().max() < 1e-5
    assert (noise.square().mean(dim=(2, 3)) - 1).abs().max() < 1e-4


def test_its_amplitude_falls_with_the_frequency() -> None:
    noise = smoothed(white(256, 1, 32, 32))[:, 0]
    amplitude = torch.fft.fft2(noise).abs().square().mean(dim=0).sqrt()[0]
    assert 1.7 < float(amplitude[2] / amplitude[4]) < 2.3
    assert 1.7 < float(amplitude[4] / amplitude[8]) < 2.3


def test_its_channels_have_most_of_their_variance_in_common() -> None:
    noise = smoothed(white(64, 3, 32, 32))
    red, green = noise[:, 0], noise[:, 1]
    # A color has its share, and a third of the rest is taken from what it has in common.
    own = (1 - SHARED) * 2 / 3
    expected = (SHARED - own / 2) / (SHARED + own)
    assert abs(float((red * green).mean()) - expected) < 0.05
