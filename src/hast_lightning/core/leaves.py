"""Pictures of leaves that lie on one another, each hiding what is below: the dead leaves model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hast_lightning.core.network import smoothed

LEAVES = 150
"""Leaves of a picture, of which the last ones lie on top."""
SMALLEST = 4.48
"""Smallest radius in pixels: smaller leaves would be noise to the first layers."""
LARGEST = 0.6
"""Largest radius in halves of the shorter side, and at least three times the smallest; how often
one occurs falls with its cube."""
CHROMA = 0.4
"""Deviation of a channel's color from the gray of its leaf, whose own deviation is 1."""
SHADE = 0.5
"""Deviation of the slope of brightness across a leaf, a half of a side."""
CONTRAST, BRIGHTNESS, TINT = 0.3, 0.5, 0.15
"""Deviations over pictures: of the logarithm of contrast, of brightness, and of each channel's."""

TEXTURES = 8
"""Textures of a picture; every leaf has one of them, or parts of several leaves the same."""
ROUGHEST, SMOOTHEST = 0.4, 1.4
"""How steeply the amplitude of a texture falls with the frequency, between these."""
GRAIN = 0.7
"""Deviation over textures of the logarithm of how far they are drawn out in one direction."""
DEPTH = 0.5
"""Deviation of how strong a leaf's texture is, where colors have 1."""


def leaves(count: int, shape: Sequence[int], *, textured: bool = False) -> Tensor:
    """Return pictures (count, C, H, W), float32, on the CPU, from the global random numbers.

    Over many of them mean and deviation are near 0 and 1.

    Ellipses and rectangles of random place, size, direction and color cover one another. Sizes
    fall with the cube of the radius, so that statistics do not depend on the scale, as with
    photographs; edges and hidden parts are what noise lacks.

    Source: the model of Lee, Mumford and Huang (IJCV 2001); Baradad et al. (NeurIPS 2021) train
    networks on such pictures, with and without textures. Constants are ours.

    Args:
        count: Pictures.
        shape: (C, H, W).
        textured: Leaves have textures: smooth noise of any steepness, drawn out in any direction.
    """
    channels, height, width = shape
    rows = torch.linspace(-1, 1, height)[:, None]
    columns = torch.linspace(-1, 1, width)[None, :]
    smallest = SMALLEST / (min(height, width) / 2)
    least, most = smallest**-2, max(LARGEST, 3 * smallest) ** -2
    radii = (least + torch.rand(count, LEAVES) * (most - least)) ** -0.5
    places = torch.rand(count, LEAVES, 2) * 2.4 - 1.2
    angles = torch.rand(count, LEAVES) * math.pi
    stretch = torch.exp(0.5 * torch.randn(count, LEAVES))
    square = torch.rand(count, LEAVES) < 0.5
    slopes = SHADE * torch.randn(count, LEAVES, 2)
    colors = torch.randn(count, LEAVES, 1) + CHROMA * torch.randn(count, LEAVES, channels)
    # The lowest leaf is the ground: it reaches everywhere.
    radii[:, 0], stretch[:, 0] = 10.0, 1.0
    pictures = torch.empty(count, channels, height, width)
    for picture, radius, place, angle, long, corner, slope, color in zip(
        pictures, radii, places, angles, stretch, square, slopes, colors, strict=True
    ):
        textures = _textures(shape) if textured else None
        for leaf in range(LEAVES):
            reach = float(radius[leaf] * torch.maximum(long[leaf], 1 / long[leaf])) * 2**0.5
            x, y = place[leaf].tolist()
            top, bottom = (_pixel(y - reach, height), _pixel(y + reach, height) + 1)
            left, right = (_pixel(x - reach, width), _pixel(x + reach, width) + 1)
            dy, dx = rows[top:bottom] - y, columns[:, left:right] - x
            cos, sin = math.cos(angle[leaf]), math.sin(angle[leaf])
            a = (cos * dx + sin * dy) / (radius[leaf] * long[leaf])
            b = (cos * dy - sin * dx) / (radius[leaf] / long[leaf])
            inside = (a.abs().maximum(b.abs()) if corner[leaf] else a * a + b * b) < 1
            shade = slope[leaf, 0] * dx + slope[leaf, 1] * dy
            if textures is not None:
                shade = shade + textures[leaf % TEXTURES, :, top:bottom, left:right]
            part = picture[:, top:bottom, left:right]
            part.copy_(torch.where(inside, color[leaf][:, None, None] + shade, part))
    pictures -= pictures.mean(dim=(1, 2, 3), keepdim=True)
    pictures /= pictures.std(dim=(1, 2, 3), correction=0, keepdim=True).clamp_min(1e-6)
    pictures *= torch.exp(CONTRAST * torch.randn(count, 1, 1, 1))
    pictures += BRIGHTNESS * torch.randn(count, 1, 1, 1)
    return pictures + TINT * torch.randn(count, channels, 1, 1)


def _textures(shape: Sequence[int]) -> Tensor:
    """Return textures (TEXTURES, C, H, W) of mean 0."""
    each = (TEXTURES, 1, 1, 1)
    steepness = ROUGHEST + (SMOOTHEST - ROUGHEST) * torch.rand(each)
    angle, stretch = math.pi * torch.rand(each), torch.exp(GRAIN * torch.randn(each))
    strength = DEPTH * torch.randn(each)
    return strength * smoothed(torch.randn(TEXTURES, *shape), steepness, angle, stretch)


def _pixel(place: float, size: int) -> int:
    """Return the pixel at a place from -1 to 1, of those there are."""
    return min(max(round((place + 1) / 2 * (size - 1)), 0), size - 1)
