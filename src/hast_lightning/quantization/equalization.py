"""Cross-layer equalization: channels between two layers are scaled, the network's output is not.

With a function between two layers that commutes with positive factors, such as ReLU,
``W2 S f(S^-1 W1 x)`` is ``W2 f(W1 x)`` for any positive diagonal ``S``. With

    s_i = sqrt(r1_i / r2_i)        r1_i = max |W1[i]|        r2_i = max |W2[:, i]|

the channel is as wide in both layers. A BatchNorm behind a layer counts as part of its weights, and
takes the factors of what it puts out.

Source: DFQ (Nagel et al., ICCV 2019, section 4.1). ReLU6 does not commute: it is left alone, where
the paper puts a ReLU in its place, which changes the network.

Where weights have a range for each output channel, the widths of weights do not matter, and those
of the activations between the layers do, which share one range. A depthwise layer takes up any
factor in its ranges, so that its inputs can all be as wide as the widest:

    s_c = r_c / max r        r_c = max(0, beta_c + 3 |gamma_c|)

by the BatchNorm in front, with ``|beta_c|`` where no ReLU lies between. Other layers are left as
they are: columns of their weights share ranges, and would become as unequal as channels were. Ours.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.graph.operations import (
    BATCH_NORMS,
    CONVOLUTION_LAYERS,
    IDENTITIES,
    BatchNorm,
    calls,
    is_depthwise,
    is_rectifier,
    layer_of,
)
from hast_lightning.graph.tracing import batch_norm_affine, trace
from hast_lightning.quantization.norm_factors import (
    DEVIATIONS,
    channel_factors,
    find_norm_pairs,
    spread,
)

_log = logging.getLogger(__name__)

NARROWEST = 0.1
"""Least width that counts for a channel, of the widest: what never fires is not blown up."""
ROUNDS = 100
SETTLED = 1e-4
"""Largest change of a channel's factor, in logarithms, at which rounds end."""
Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
"""Kinds of layers that are scaled; others, such as transposed convolutions, end what commutes."""
_KINDS = (*CONVOLUTION_LAYERS, nn.Linear)
_PASSING_LAYERS = (
    *(*IDENTITIES, nn.Flatten),
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


def equalized(pretrained: PretrainedNetwork, *, per_tensor: bool) -> PretrainedNetwork:
    """Return the network with equalized channels: the same function, up to float rounding.

    A line says so where no two of its layers follow each other so.

    Args:
        pretrained: Left as it is.
        per_tensor: All weights of a layer are to share a range; false: those of a channel.
    """
    network = copy.deepcopy(pretrained.network)
    graph = trace(network)
    pairs, norms = find_pairs(graph), find_norm_pairs(graph)
    if not per_tensor:
        pairs = [pair for pair in pairs if pair.norm is not None and is_depthwise(pair.second)]
    if not pairs and not norms:
        between = "with nothing but a BatchNorm, a ReLU or a pooling between them"
        wanted = f"no two layers of the network follow each other {between}"
        if not per_tensor:
            wanted = f"the network has no depthwise layer behind a BatchNorm, {between}"
        _log.warning("quantizer.equalize=true changes nothing: %s, and no LayerNorm", wanted)
        return pretrained
    if per_tensor:
        equalize(pairs)
    else:
        widen(pairs)
    spread(graph, norms)
    # Where a LayerNorm's output also goes elsewhere, the graph has another operation.
    alone = all(pair.alone for pair in norms)
    return replace(pretrained, network=network if alone else graph)


@torch.no_grad()
def widen(pairs: list[Pair]) -> None:
    """Make all channels that depthwise layers take in as wide as the widest, in place."""
    for pair in pairs:
        widths = _widths(pair)
        if (widest := widths.amax()) > 0:
            _scale(pair, (widths / widest).clamp_min(NARROWEST))


def _widths(pair: Pair) -> Tensor:
    """Return how far the values of each channel reach by the BatchNorm, (channels,)."""
    norm = pair.norm
    assert norm is not None
    assert norm.bias is not None
    if pair.rectified:
        return (norm.bias + DEVIATIONS * norm.weight.abs()).clamp_min(0)
    return norm.bias.abs() + DEVIATIONS * norm.weight.abs()


@torch.no_grad()
def equalize(pairs: list[Pair]) -> None:
    """Scale the channels between all pairs, in place, until they are as wide on either side."""
    for _ in range(ROUNDS):
        moved = 0.0
        for pair in pairs:
            factors = channel_factors(_out_ranges(pair), _in_ranges(pair))
            _scale(pair, factors)
            moved = max(moved, float(factors.log().abs().max()))
        if moved < SETTLED:
            return


def find_pairs(network: fx.GraphModule) -> list[Pair]:
    """Return the pairs of a network in evaluation mode, in order of execution."""
    called = Counter(str(node.target) for node in network.graph.nodes if node.op == "call_module")
    once = {name for name, count in called.items() if count == 1}
    return [pair for node in network.graph.nodes for pair in _pairs_from(node, network, once)]


def _pairs_from(node: fx.Node, network: fx.GraphModule, once: set[str]) -> Iterator[Pair]:
    first = layer_of(node, network)
    if type(first) not in _KINDS or str(node.target) not in once:
        return
    assert isinstance(first, Layer)
    norm = _norm_behind(node, network, once)
    at, rectified = node, False
    while len(at.users) == 1:
        (at,) = at.users
        layer = layer_of(at, network)
        if layer is not None and type(layer) in _KINDS:
            assert isinstance(layer, Layer)
            if str(at.target) in once and _takes_channel_by_channel(layer, len(first.weight)):
                yield Pair(first, norm, layer, _norm_behind(at, network, once), rectified)
            return
        rectified |= is_rectifier(at, network)
        if not (layer is not None and layer is norm) and not _commutes(
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
    passes = isinstance(layer_of(node, network), _PASSING_LAYERS) or calls(node, _PASSING_FUNCTIONS)
    return passes or is_rectifier(node, network)


def _takes_channel_by_channel(layer: Layer, channels: int) -> bool:
    """Return whether input ``i`` of a layer is channel ``i`` of ``channels``."""
    if isinstance(layer, nn.Linear):
        # Behind flattening there are as many where each channel is a single number.
        return layer.in_features == channels
    return layer.in_channels == channels and layer.groups in (1, channels)


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


def _scale(pair: Pair, factors: Tensor) -> None:
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
