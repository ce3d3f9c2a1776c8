"""Factors per channel behind a LayerNorm: its channels differ by orders of magnitude in width.

A LayerNorm's ``gamma x + beta`` divided by ``s`` per channel, and the columns of the linear layers
behind it times ``s``, give the same answers, and one range of activations fits all channels. With

    s_c = sqrt(r1_c / r2_c)        r1_c = |beta_c| + 3 |gamma_c|        r2_c = max |W[:, c]|

it is cross-layer equalization (DFQ, Nagel et al., ICCV 2019) with a width that the LayerNorm says
itself, since what it normalizes has mean 0 and variance 1. Ours; RepQ-ViT (Li et al., ICCV 2023)
folds factors there that it calibrates.

Where the output also goes elsewhere, as into the residual sum of a post-norm transformer, the
division stays an operation of its own, in front of the layers alone.
"""

from __future__ import annotations

import operator
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from hast_lightning.graph.operations import layer_of

DEVIATIONS = 3.0
"""Standard deviations to either side that count as a channel's width."""
_PASSING = (nn.Identity, nn.Dropout)
FACTORS = "channel_factors"


class NormPair(NamedTuple):
    """A LayerNorm and the linear layers that take in what it puts out.

    Attributes:
        node: Of the LayerNorm.
        takers: Nodes of the linear layers.
        alone: Whether nothing else takes it in.
    """

    node: fx.Node
    takers: tuple[fx.Node, ...]
    alone: bool


def find_norm_pairs(network: fx.GraphModule) -> list[NormPair]:
    """Return the LayerNorms with linear layers right behind them, each called once."""
    called = Counter(str(node.target) for node in network.graph.nodes if node.op == "call_module")
    owners = Counter(id(p) for each in network.modules() for p in each.parameters(recurse=False))
    found = []
    for node in network.graph.nodes:
        norm = layer_of(node, network)
        if not isinstance(norm, nn.LayerNorm) or len(norm.normalized_shape) != 1:
            continue
        users = _users(node, network)
        takers = [user for user in users if type(layer_of(user, network)) is nn.Linear]
        once = all(
            called[str(each.target)] == 1
            # Scaled where they stand, shared weights would change elsewhere, too.
            and all(owners[id(p)] == 1 for p in layer_of(each, network).parameters())  # type: ignore[union-attr]
            for each in (node, *takers)
        )
        if takers and once and norm.weight is not None:
            found.append(NormPair(node, tuple(takers), len(takers) == len(users)))
    return found


def _users(node: fx.Node, network: fx.GraphModule) -> list[fx.Node]:
    found = []
    for user in node.users:
        passes = isinstance(layer_of(user, network), _PASSING)
        found += _users(user, network) if passes else [user]
    return found


def norm_widths(norm: nn.LayerNorm) -> Tensor:
    """Return ``|beta| + 3 |gamma|``, (channels,)."""
    widths = DEVIATIONS * norm.weight.abs()
    return widths if norm.bias is None else widths + norm.bias.abs()


@torch.no_grad()
def spread(network: fx.GraphModule, pairs: list[NormPair]) -> None:
    """Move factors from LayerNorms to the layers behind them; the network answers as before.

    Args:
        network: Changed in place, its layers too.
        pairs: Of this graph.
    """
    for pair in pairs:
        norm, layers = layer_of(pair.node, network), [layer_of(t, network) for t in pair.takers]
        assert isinstance(norm, nn.LayerNorm)
        columns = torch.stack([layer.weight.abs().amax(0) for layer in layers])  # type: ignore[union-attr,operator]
        factors = channel_factors(norm_widths(norm), columns.amax(0))
        for layer in layers:
            layer.weight.mul_(factors)  # type: ignore[union-attr,operator]
        if pair.alone:
            norm.weight.div_(factors)
            if norm.bias is not None:
                norm.bias.div_(factors)
        else:
            _insert(pair, factors, network)
    network.graph.lint()
    network.recompile()


def channel_factors(out_widths: Tensor, in_widths: Tensor) -> Tensor:
    """Return ``sqrt(out_widths / in_widths)``, (channels,); 1 where either is zero."""
    usable = (out_widths > 0) & (in_widths > 0)
    return torch.where(usable, (out_widths / in_widths).sqrt(), torch.ones_like(out_widths))


def _insert(pair: NormPair, factors: Tensor, network: fx.GraphModule) -> None:
    """Divide what the layers alone take in."""
    name = f"{pair.node.name}_{FACTORS}"
    network.register_buffer(name, 1 / factors)
    first = min(pair.takers)
    source = first.all_input_nodes[0]
    with network.graph.inserting_before(first):
        value = network.graph.get_attr(name)
        divided = network.graph.create_node(
            "call_function", operator.mul, (source, value), {}, f"{pair.node.name}_divided"
        )
    for taker in pair.takers:
        taker.replace_input_with(taker.all_input_nodes[0], divided)
