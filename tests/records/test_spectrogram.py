from __future__ import annotations

import torch

from hast_lightning.records.spectrogram import COLORS, as_pictures, spectrograms
from tests.features import features, loaded


def test_time_goes_right_and_the_first_coefficient_is_at_the_bottom() -> None:
    values = torch.zeros(1, 1, 3, 2)
    values[0, 0, 2, 0] = 1000.0  # the last frame of the first coefficient
    shown = spectrograms(values)
    assert shown.shape == (1, 3, 2, 3)
    low, middle, high = (torch.tensor(COLORS[index]) / 255 for index in (0, 2, 4))
    # Of mean 333 and deviation 471: -0.71 and 1.41 deviations, of 2 to either side.
    assert shown[0, :, 1, 2].sub(high).abs().sum() < shown[0, :, 1, 2].sub(low).abs().sum()
    assert shown[0, :, 1, 0].sub(low).abs().sum() < shown[0, :, 1, 0].sub(high).abs().sum()
    torch.testing.assert_close(shown[0, :, 0, 1], middle)


def test_scale_and_mean_of_a_coefficient_do_not_show() -> None:
    values = features(4)
    torch.testing.assert_close(
        spectrograms(values), spectrograms(values * 7 - 40), atol=1e-4, rtol=0
    )


def test_few_coefficients_are_repeated_and_channels_are_stacked() -> None:
    assert spectrograms(torch.randn(2, 1, 49, 10)).shape == (2, 3, 40, 49)
    assert spectrograms(torch.randn(2, 3, 8, 4)).shape == (2, 3, 12, 8)


def test_features_become_colored_pictures() -> None:
    images, mean, std = as_pictures(features(2), loaded())
    assert images.shape == (2, 3, 10, 11) and mean == (0, 0, 0) and std == (1, 1, 1)
    assert images.min() >= 0 and images.max() <= 1
