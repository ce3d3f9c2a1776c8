"""BatchNorms behind frozen layers become part of the layers' scales and biases.

The student rounds the weights before its BatchNorm multiplies them, so the BatchNorm goes into
the *scales* of the integers: the integers stay what they are, and the result is the same up to
float rounding. (Folding it into the weights before they are rounded, as is usual, would give
other integers and so another network.)
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from hast_lightning.export.frozen import FROZEN_CONVOLUTIONS, FrozenLayer, FrozenWeight
from hast_lightning.graph.tracing import (
    SMALLEST_FACTOR,
    batch_norm_affine,
    foldable_batch_norms,
)


@torch.no_grad()
def fold_into_scales(network: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of a frozen network without the BatchNorms that can be folded.

    The BatchNorms become identities. A channel that its BatchNorm multiplies by a negative
    number gets mirrored integers, or where the grid has no mirror image a negative scale.
    """
    folded = copy.deepcopy(network)
    for convolution, name, normalization in foldable_batch_norms(
        folded, FROZEN_CONVOLUTIONS.values()
    ):
        assert isinstance(convolution, FrozenLayer)
        factor, shift = batch_norm_affine(normalization)
        if convolution.bias is not None:
            shift = shift + factor * convolution.bias.double()
        convolution.bias = nn.Parameter(shift.float(), requires_grad=False)
        _multiply(convolution.quantized_weight, factor)
        folded.set_submodule(name, nn.Identity())
    return folded.eval()


ROUNDED = 1e-6
"""Scales that differ by less are one, of which products in float32 made several."""


def _multiply(weight: FrozenWeight, factor: Tensor) -> None:
    """Multiply the weights of each channel by ``factor``, (out_channels,), float64."""
    factor = factor.view(weight.scale.shape)
    product = (weight.scale.double() * factor).float()
    ended = (product == 0) | (factor.abs() < SMALLEST_FACTOR)
    _clear(weight, ended)
    weight.scale = torch.where(ended, weight.scale, product)
    _mirror(weight, weight.scale < 0)
    scale = weight.scale
    if scale.min() > 0 and scale.max() / scale.min() - 1 < ROUNDED:
        weight.scale = scale.median().expand_as(scale).contiguous()


def _clear(weight: FrozenWeight, channels: Tensor) -> None:
    """Set every weight to zero of ``channels``; a scale of zero would leave no grid for a bias."""
    inside = weight.zero_point.round().clamp(0, weight.largest)
    weight.zero_point = torch.where(channels, inside, weight.zero_point)
    weight.integers = torch.where(channels, inside.to(torch.uint8), weight.integers)


def _mirror(weight: FrozenWeight, channels: Tensor) -> None:
    """Give the same weights of ``channels`` a positive scale."""
    if weight.symmetric:
        # The lowest signed integer has no counterpart: those channels keep a negative scale.
        lowest = weight.integers.flatten(1).amin(dim=1).view(weight.scale.shape)
        channels = channels & (lowest > 0)
        turning_point = weight.largest + 1
    else:
        turning_point = weight.largest
        weight.zero_point = torch.where(
            channels, turning_point - weight.zero_point, weight.zero_point
        )
    mirrored = (turning_point - weight.integers.int()).to(torch.uint8)
    weight.integers = torch.where(channels, mirrored, weight.integers)
    weight.scale = torch.where(channels, -weight.scale, weight.scale)
