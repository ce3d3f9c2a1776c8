"""Pictures of leaves that lie on one another."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hast_lightning.core.leaves import leaves
from hast_lightning.core.network import smoothed


def steps(pictures: Tensor) -> Tensor:
    """Differences of neighbors in a row, in units of the picture's deviation."""
    spread = pictures.std(dim=(1, 2, 3), keepdim=True)
    return ((pictures[..., 1:] - pictures[..., :-1]) / spread).flatten()


def test_pictures_are_standardized_over_many_and_not_one_by_one() -> None:
    torch.manual_seed(0)
    pictures = leaves(60, (3, 12, 16))
    assert pictures.shape == (60, 3, 12, 16) and pictures.dtype == torch.float32
    assert abs(float(pictures.mean())) < 0.2 and abs(float(pictures.std()) - 1.2) < 0.2
    of_each = pictures.mean(dim=(1, 2, 3))
    assert 0.35 < float(of_each.std()) < 0.65


def test_the_same_seed_gives_the_same_pictures() -> None:
    torch.manual_seed(3)
    first = leaves(2, (1, 8, 8))
    torch.manual_seed(3)
    assert torch.equal(leaves(2, (1, 8, 8)), first)
    assert not torch.equal(leaves(2, (1, 8, 8)), first)


def test_they_have_edges_that_noise_lacks() -> None:
    torch.manual_seed(0)
    ours, noise = steps(leaves(16, (3, 64, 64))), steps(smoothed(torch.randn(16, 3, 64, 64)))
    kurtosis = [float((s**4).mean() / (s**2).mean() ** 2) for s in (ours, noise)]
    # Of a normal distribution 3; of derivatives of photographs far more.
    assert kurtosis[0] > 10 > kurtosis[1]


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 7), (4, 2, 2)])
def test_any_size_is_filled(shape: tuple[int, int, int]) -> None:
    assert leaves(3, shape).isfinite().all()
