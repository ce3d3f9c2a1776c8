"""Two layers with nothing between them but what commutes with positive factors, channel by channel.

Whoever divides a channel of the first by ``s`` and multiplies what the second takes it in with by
``s`` leaves what the network computes as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from hast_lightning.graph.operations import (
    BATCH_NORMS,
    CONVOLUTION_LAYERS,
    IDENTITIES,
    BatchNorm,
    calls,
    is_depthwise,
    is_rectifier,
    layer_of,
    makes_vectors,
    rearranges,
)

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
"""Kinds of layers that are scaled; others, such as transposed convolutions, end what commutes."""
_KINDS = (*CONVOLUTION_LAYERS, nn.Linear)
_PASSING_LAYERS = (
    *(*IDENTITIES, nn.Flatten, nn.ZeroPad2d),
    *(nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    *(nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d),
)
_PASSING_FUNCTIONS = (
    *(torch.flatten, "flatten", F.dropout),
    *(F.max_pool1d, F.avg_pool1d, F.adaptive_avg_pool1d),
    *(F.max_pool2d, torch.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d),
    *(F.max_pool3d, F.avg_pool3d, F.adaptive_avg_pool3d),
)


class Pair(NamedTuple):
    """Two layers with nothing between them but what commutes with positive factors.

    Attributes:
        first: The layer whose outputs are scaled.
        norm: The BatchNorm behind it; none: there is none.
        second: The layer that takes them in; depthwise or of one group.
        second_norm: The BatchNorm behind it; none: there is none.
        rectified: A ReLU lies between.
    """

    first: Layer
    norm: BatchNorm | None
    second: Layer
    second_norm: BatchNorm | None
    rectified: bool


def find_pairs(network: fx.GraphModule) -> list[Pair]:
    """Return the pairs of a network in evaluation mode, in order of execution.

    Args:
        network: Traced.
    """
    called = Counter(str(node.target) for node in network.graph.nodes if node.op == "call_module")
    owners = Counter(id(p) for each in network.modules() for p in each.parameters(recurse=False))
    once = {
        name
        for name, count in called.items()
        if count == 1
        # Scaled where they stand, shared weights would change elsewhere, too.
        and all(owners[id(p)] == 1 for p in network.get_submodule(name).parameters())
    }
    return [pair for node in network.graph.nodes for pair in _pairs_from(node, network, once)]


def _pairs_from(node: fx.Node, network: fx.GraphModule, once: set[str]) -> Iterator[Pair]:
    first = layer_of(node, network)
    if type(first) not in _KINDS or str(node.target) not in once:
        return
    assert isinstance(first, Layer)
    norm = _norm_behind(node, network, once)
    at, rectified, vectors = node, False, isinstance(first, nn.Linear)
    while len(at.users) == 1:
        (at,) = at.users
        layer = layer_of(at, network)
        if layer is not None and type(layer) in _KINDS:
            assert isinstance(layer, Layer)
            # Of maps a linear layer sees the last dimension, which is no channel.
            seen = vectors or not isinstance(layer, nn.Linear)
            fits = seen and _takes_channel_by_channel(layer, len(first.weight))
            if fits and str(at.target) in once:
                yield Pair(first, norm, layer, _norm_behind(at, network, once), rectified)
            return
        vectors = vectors or makes_vectors(at, network)
        if is_rectifier(at, network):
            rectified = True
        elif not (layer is not None and layer is norm) and not _commutes(
            at, network, first.weight.dim()
        ):
            return


def _norm_behind(node: fx.Node, network: fx.GraphModule, once: set[str]) -> BatchNorm | None:
    """Return the BatchNorm that alone takes in a layer's result, where it can be scaled."""
    # The last dimension of a linear layer's result need not be that of the channels behind it.
    if len(node.users) != 1 or isinstance(layer_of(node, network), nn.Linear):
        return None
    (user,) = node.users
    layer = layer_of(user, network)
    usable = isinstance(layer, BATCH_NORMS) and layer.running_var is not None and layer.affine
    return layer if usable and str(user.target) in once else None  # type: ignore[return-value]


def _commutes(node: fx.Node, network: fx.GraphModule, dimensions: int) -> bool:
    """Return whether a node commutes with positive factors, channel by channel.

    ``dimensions`` are those of the values of maps, as of the convolution's weights.
    """
    if calls(node, (torch.mean, "mean")):
        given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        return isinstance(given, list | tuple) and sorted(n % dimensions for n in given) == list(
            range(2, dimensions)
        )
    if calls(node, (F.pad,)):
        sides = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
        within = isinstance(sides, list | tuple) and len(sides) <= 2 * (dimensions - 2)
        return within and rearranges(node, network)
    return isinstance(layer_of(node, network), _PASSING_LAYERS) or calls(node, _PASSING_FUNCTIONS)


def _takes_channel_by_channel(layer: Layer, channels: int) -> bool:
    """Return whether input ``i`` of a layer is channel ``i`` of ``channels``."""
    if isinstance(layer, nn.Linear):
        # Behind flattening there are as many where each channel is a single number.
        return layer.in_features == channels
    return layer.in_channels == channels and layer.groups in (1, channels)


@torch.no_grad()
def scale(pair: Pair, factors: Tensor) -> None:
    """Divide what the first layer puts out by ``factors``, (channels,); the second takes them."""
    scaled = pair.first if pair.norm is None else pair.norm
    for part in (scaled.weight, scaled.bias):
        if part is not None:
            part.div_(factors.view(-1, *(1,) * (part.dim() - 1)))
    weight = pair.second.weight
    if is_depthwise(pair.second):
        factors = factors.repeat_interleave(len(weight) // len(factors))
        weight.mul_(factors.view(-1, *(1,) * (weight.dim() - 1)))
    else:
        weight.mul_(factors.view(1, -1, *(1,) * (weight.dim() - 2)))
