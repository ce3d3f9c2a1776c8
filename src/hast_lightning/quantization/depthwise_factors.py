"""Factors per channel in front of a depthwise layer: all that it takes in is made equally wide.

Weights have a range for each output channel, and activations one for all. A depthwise layer takes
up any factor of a channel in the range of its weights, so that its inputs can all be as wide as the
widest, at no cost:

    s_c = r_c / max r        r_c = max(0, beta_c + 3 |gamma_c|)

by the BatchNorm in front, with ``|beta_c|`` where no ReLU lies between. Other layers are left as
they are: the columns of their weights share ranges, and would become as unequal as channels were.
So are those behind a ReLU6, whose channels all end at 6.

Ours: cross-layer equalization (DFQ, Nagel et al., ICCV 2019) with the widths of activations.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from hast_lightning.graph.operations import is_depthwise
from hast_lightning.quantization.channel_pairs import Pair, find_pairs, scale
from hast_lightning.quantization.norm_factors import DEVIATIONS

NARROWEST = 0.1
"""Least width that counts for a channel, of the widest: what never fires is not blown up."""


def find_depthwise_pairs(network: fx.GraphModule) -> list[Pair]:
    """Return the pairs whose second layer is depthwise, with a BatchNorm behind the first."""
    pairs = find_pairs(network)
    return [pair for pair in pairs if pair.norm is not None and is_depthwise(pair.second)]


@torch.no_grad()
def widen(pairs: list[Pair]) -> None:
    """Make all channels that depthwise layers take in as wide as the widest, in place."""
    for pair in pairs:
        widths = input_widths(pair)
        if (widest := widths.amax()) > 0:
            scale(pair, (widths / widest).clamp_min(NARROWEST))


def input_widths(pair: Pair) -> Tensor:
    """Return how far the values of each channel reach by the BatchNorm, (channels,)."""
    norm = pair.norm
    assert norm is not None
    assert norm.bias is not None
    if pair.rectified:
        return (norm.bias + DEVIATIONS * norm.weight.abs()).clamp_min(0)
    return norm.bias.abs() + DEVIATIONS * norm.weight.abs()
