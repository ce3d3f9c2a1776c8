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


def test_textured_leaves_lie_where_plain_ones_do() -> None:
    """The same numbers place and color them; textures come on top."""
    torch.manual_seed(0)
    plain = leaves(1, (3, 64, 64))
    torch.manual_seed(0)
    textured = leaves(1, (3, 64, 64), textured=True)
    pair = torch.stack([plain.flatten(), textured.flatten()])
    assert 0.5 < float(torch.corrcoef(pair)[0, 1]) < 0.99


def test_textures_fill_leaves_and_leave_edges() -> None:
    torch.manual_seed(0)
    plain, textured = (steps(leaves(16, (3, 64, 64), textured=which)) for which in (False, True))
    # Plain leaves are flat but for their slope: most neighbors are alike.
    flat = [float((found.abs() < 0.02).float().mean()) for found in (plain, textured)]
    assert flat[0] > 0.5 > flat[1]
    assert float((textured**4).mean() / (textured**2).mean() ** 2) > 6


def test_textures_differ_in_direction_and_roughness() -> None:
    torch.manual_seed(0)
    noise = torch.randn(3, 1, 64, 64)
    angle = torch.tensor([0.0, torch.pi / 2, 0.0]).view(3, 1, 1, 1)
    stretch = torch.tensor([3.0, 3.0, 1.0]).view(3, 1, 1, 1)
    along_rows, along_columns, round_ones = smoothed(noise, 1.0, angle, stretch)
    for drawn, other in ((along_rows, -1), (along_columns, -2)):
        same, across = (float(drawn.diff(dim=d).square().mean()) for d in (other, -3 - other))
        assert across > 3 * same
    ratio = [float(round_ones.diff(dim=d).square().mean()) for d in (-1, -2)]
    assert 0.7 < ratio[0] / ratio[1] < 1.4
    rough, smooth = (float(smoothed(noise, s).diff(dim=-1).square().mean()) for s in (0.4, 1.4))
    assert rough > 5 * smooth
    assert torch.equal(smoothed(noise, 1.0, 0.0, 1.0), smoothed(noise))
