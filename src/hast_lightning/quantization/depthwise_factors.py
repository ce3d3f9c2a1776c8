"""Factors per channel in front of a depthwise layer: all that it takes in is made equally wide.

Weights have a range for each output channel, and activations one for all. A depthwise layer takes
up any factor of a channel in the range of its weights, so that its inputs can all be as wide as the
widest, at no cost:

    s_c = r_c / max r        r_c = max(0, beta_c + 3 |gamma_c|)

by the BatchNorm in front, with ``|beta_c|`` where no ReLU lies between. A ReLU6 between ends at
``6 / s_c`` then. Other layers are left as they are: the columns of their weights share ranges, and
would become as unequal as channels were.

Ours: cross-layer equalization (DFQ, Nagel et al., ICCV 2019) with the widths of activations.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from hast_lightning.graph.operations import is_depthwise
from hast_lightning.quantization.channel_pairs import Pair, find_pairs, scale
from hast_lightning.quantization.norm_factors import DEVIATIONS

NARROWEST = 0.1
"""Least width that counts for a channel, of the widest: what never fires is not blown up."""
END = 6.0


def find_depthwise_pairs(network: fx.GraphModule, *, through_relu6: bool) -> list[Pair]:
    """Return the pairs whose second layer is depthwise, with a BatchNorm behind the first."""
    pairs = find_pairs(network, through_relu6=through_relu6)
    return [pair for pair in pairs if pair.norm is not None and is_depthwise(pair.second)]


@torch.no_grad()
def widen(network: fx.GraphModule, pairs: list[Pair]) -> None:
    """Make all channels that depthwise layers take in as wide as the widest; the function stays.

    Args:
        network: Changed in place, its layers too.
        pairs: Of this graph.
    """
    for pair in pairs:
        widths = input_widths(pair, network)
        if (widest := widths.amax()) > 0:
            factors = (widths / widest).clamp_min(NARROWEST)
            scale(pair, factors)
            if pair.ends_at_6(network):
                _end_at(END / factors, pair, network)
    network.graph.lint()
    network.recompile()


def input_widths(pair: Pair, network: fx.GraphModule) -> Tensor:
    """Return how far the values of each channel reach by the BatchNorm, (channels,)."""
    norm = pair.norm
    assert norm is not None
    assert norm.bias is not None
    if pair.activation is None:
        return norm.bias.abs() + DEVIATIONS * norm.weight.abs()
    widths = (norm.bias + DEVIATIONS * norm.weight.abs()).clamp_min(0)
    return widths.clamp_max(END) if pair.ends_at_6(network) else widths


def _end_at(bounds: Tensor, pair: Pair, network: fx.GraphModule) -> None:
    """Put a minimum and a ReLU in the place of a ReLU6: channels end at ``bounds``, (channels,).

    The ReLU has the name of the ReLU6, and comes last, since what it puts out is quantized.
    """
    node = pair.activation
    assert node is not None
    name = f"{node.name}_bounds"
    while hasattr(network, name):
        name += "_"
    network.register_buffer(name, bounds.view(-1, *(1,) * (pair.second.weight.dim() - 2)))
    source, graph = node.all_input_nodes[0], network.graph
    with graph.inserting_before(node):
        low = graph.call_function(torch.minimum, (source, graph.get_attr(name)))
    if [each.target for each in graph.nodes].count(node.target) == 1 and node.op == "call_module":
        network.set_submodule(str(node.target), nn.ReLU())
    else:
        node.op, node.target = "call_function", F.relu
    node.args, node.kwargs = (low,), {}
