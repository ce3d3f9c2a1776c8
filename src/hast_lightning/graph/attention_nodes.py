"""Where attention is in a graph: its scores, its probabilities, and what it puts out."""

from __future__ import annotations

import math
import operator
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from hast_lightning.core.network import Network
from hast_lightning.errors import ModelError
from hast_lightning.graph.operations import MATRIX_PRODUCTS, calls, layer_of, rearranges

_ADDING = (torch.addmm, torch.baddbmm, "addmm", "baddbmm")
"""Products that add to what they multiply: their first argument."""
_SOFTMAXES = (F.softmax, torch.softmax, "softmax")
_BETWEEN = (
    *(operator.mul, operator.truediv, operator.add, torch.mul, torch.div, torch.add, torch.where),
    *("mul", "div", "add", "masked_fill"),
)
"""What stands between scores and their softmax: scales, masks, biases of positions."""
HEADS_DIMENSIONS = 4
MOST_PREFIXES = 5
"""Tokens beside the patches: a class, a distillation, and a few registers."""


class Attention(NamedTuple):
    """Names of the nodes of one attention; its shapes are (N, heads, tokens, tokens or d).

    Attributes:
        scores: ``q k^T``, before scale and mask.
        probabilities: What the softmax puts out.
        output: ``attn v``, before the projection.
    """

    scores: str
    probabilities: str
    output: str


def find_attentions(network: fx.GraphModule) -> list[Attention]:
    """Return the attentions of a network, in order of execution."""
    found = []
    for node in network.graph.nodes:
        multiplied = factors(node)
        # Of einsum the equation says what is summed, whatever the order.
        first = multiplied if calls(node, (torch.einsum,)) else multiplied[:1]
        behind = (softmax_behind(each, network) for each in first)
        softmax = next(filter(None, behind), None)
        scores = None if softmax is None else _scores_behind(softmax, network)
        if softmax is not None and scores is not None:
            found.append(Attention(scores.name, softmax.name, node.name))
    return found


def factors(node: fx.Node) -> list[fx.Node]:
    """Return what a product of matrices multiplies; nothing where a node is none."""
    if not calls(node, MATRIX_PRODUCTS):
        return []
    if calls(node, (torch.einsum,)):
        # With one operand it sums or rearranges.
        operands = pytree.tree_leaves((node.args, node.kwargs))
        found = [each for each in operands if isinstance(each, fx.Node)]
        return found if len(found) > 1 else []
    return node.all_input_nodes[1:] if calls(node, _ADDING) else node.all_input_nodes


def softmax_behind(node: fx.Node, network: fx.GraphModule) -> fx.Node | None:
    """Return the softmax whose output a value is, however it was rearranged; none: it is none."""
    while True:
        if calls(node, _SOFTMAXES) or isinstance(layer_of(node, network), nn.Softmax):
            return node
        if not rearranges(node, network) or not node.all_input_nodes:
            return None
        node = node.all_input_nodes[0]


def _scores_behind(softmax: fx.Node, network: fx.GraphModule) -> fx.Node | None:
    """Return the product that a softmax takes in, behind scales, masks and rearrangements."""
    pending = list(softmax.all_input_nodes)
    while pending:
        node = pending.pop(0)
        if factors(node):
            return node
        if calls(node, _BETWEEN) or rearranges(node, network):
            pending.extend(node.all_input_nodes)
    return None


def require_attentions(network: Network, term: str, *, outputs: bool = False) -> list[Attention]:
    """Return the attentions that a term looks at, over square grids of patches; at least one.

    Args:
        network: Whose attentions they are.
        term: Its name, for messages.
        outputs: It looks at what they put out, which has to be (N, heads, tokens, d).

    Raises:
        ModelError: there is none, or the tokens are no square grid of patches.
    """
    found = find_attentions(network.graph_module)
    if not found:
        raise ModelError(f"the network has no attention, which the term {term} needs")
    parameter = next(network.graph_module.parameters(), torch.zeros(()))
    picture = torch.zeros(1, *network.pretrained.input_shape, device=parameter.device)
    nodes = [name for each in found for name in (each.scores, each.output)]
    with torch.no_grad():
        values = network.trace(picture, nodes, unfolded=True).values
    # Of other pictures the number of tokens does not say how many stand before the patches.
    square = picture.shape[-2] == picture.shape[-1]
    for name, _, output in found:
        shape, put_out = tuple(values[name].shape), tuple(values[output].shape)
        grid = len(shape) == HEADS_DIMENSIONS and shape[2] == shape[3]
        if not grid or not square or prefixes(shape[2]) is None:
            sides = "x".join(map(str, picture.shape[-2:]))
            raise ModelError(
                f"the network's attention at {name} gives scores of {shape} for pictures of "
                f"{sides}; the term {term} needs (images, heads, tokens, tokens) over a square grid"
                " of patches"
            )
        if outputs and (len(put_out) != HEADS_DIMENSIONS or put_out[:3] != shape[:3]):
            raise ModelError(
                f"the network's attention at {output} puts out {put_out}; the term {term} needs "
                f"(images, heads, tokens, values), as its scores of {shape} are"
            )
    return found


def prefixes(tokens: int) -> int | None:
    """Return how many tokens stand before the patches of a square grid; none: it is no such grid.

    65 tokens are a class and 8 x 8 patches, 49 are 7 x 7 patches.
    """
    count = tokens - math.isqrt(tokens) ** 2
    return count if count <= MOST_PREFIXES and tokens > 1 else None


def patches(values: Tensor) -> Tensor:
    """Return values (N, heads, tokens, d) of the patches alone."""
    return values[:, :, prefixes(values.shape[2]) or 0 :]


def patch_scores(scores: Tensor) -> Tensor:
    """Return scores (N, heads, tokens, tokens) of patches among themselves."""
    first = prefixes(scores.shape[2]) or 0
    return scores[:, :, first:, first:]
