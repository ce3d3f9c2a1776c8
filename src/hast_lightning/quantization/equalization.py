"""Cross-layer equalization: channels between two layers are scaled, the network's output is not.

With a function between two layers that commutes with positive factors, such as ReLU,
``W2 S f(S^-1 W1 x)`` is ``W2 f(W1 x)`` for any positive diagonal ``S``. With

    s_i = sqrt(r1_i / r2_i)        r1_i = max |W1[i]|        r2_i = max |W2[:, i]|

the channel is as wide in both layers. A BatchNorm behind a layer counts as part of its weights, and
takes the factors of what it puts out.

Source: DFQ (Nagel et al., ICCV 2019, section 4.1). ReLU6 does not commute: it is left alone, where
the paper puts a ReLU in its place, which changes the network.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import torch
from torch import Tensor

from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.graph.operations import BatchNorm, is_depthwise
from hast_lightning.graph.tracing import batch_norm_affine, trace
from hast_lightning.quantization.channel_pairs import Layer, Pair, find_pairs, scale
from hast_lightning.quantization.depthwise_factors import find_depthwise_pairs, widen
from hast_lightning.quantization.norm_factors import channel_factors, find_norm_pairs, spread

_log = logging.getLogger(__name__)

ROUNDS = 100
SETTLED = 1e-4
"""Largest change of a channel's factor, in logarithms, at which rounds end."""


def equalized(pretrained: PretrainedNetwork, *, per_tensor: bool) -> PretrainedNetwork:
    """Return the network with equalized channels: the same function, up to float rounding.

    A line of the log (info) says so where no two of its layers follow each other so.

    Args:
        pretrained: Left as it is.
        per_tensor: All weights of a layer are to share a range; false: those of a channel.
    """
    network = copy.deepcopy(pretrained.network)
    graph = trace(network)
    norms = find_norm_pairs(graph)
    if per_tensor:
        equalize(pairs := find_pairs(graph))
    else:
        widen(pairs := find_depthwise_pairs(graph))
    if not pairs and not norms:
        layers = "no two layers follow each other" if per_tensor else "no depthwise layer follows"
        between = "with nothing but a BatchNorm, a ReLU or a pooling between"
        _log.info("quantizer.equalize=true changes nothing: %s %s", layers, between)
        return pretrained
    spread(graph, norms)
    # Where a LayerNorm's output also goes elsewhere, the graph has another operation.
    kept = all(pair.alone for pair in norms)
    return replace(pretrained, network=network if kept else graph)


@torch.no_grad()
def equalize(pairs: list[Pair]) -> None:
    """Scale the channels between all pairs, in place, until they are as wide on either side."""
    for _ in range(ROUNDS):
        moved = 0.0
        for pair in pairs:
            factors = channel_factors(_out_ranges(pair), _in_ranges(pair))
            scale(pair, factors)
            moved = max(moved, float(factors.log().abs().max()))
        if moved < SETTLED:
            return


def _folded(layer: Layer, norm: BatchNorm | None) -> Tensor:
    """Return absolute weights with the BatchNorm's factors, (out_channels, in, positions)."""
    weight = (
        layer.weight.abs().flatten(2) if layer.weight.dim() > 2 else layer.weight.abs()[..., None]
    )
    if norm is None:
        return weight
    return weight * batch_norm_affine(norm)[0].abs().to(weight.dtype)[:, None, None]


def _out_ranges(pair: Pair) -> Tensor:
    return _folded(pair.first, pair.norm).amax(dim=(1, 2))


def _in_ranges(pair: Pair) -> Tensor:
    weight = _folded(pair.second, pair.second_norm)
    if not is_depthwise(pair.second):
        return weight.amax(dim=(0, 2))
    # A depthwise layer may put out several channels for each that it takes in.
    return weight.amax(dim=(1, 2)).view(len(pair.first.weight), -1).amax(dim=1)
