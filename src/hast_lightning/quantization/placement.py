"""Placements: the values of a network's graph that are quantized."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from hast_lightning.core.part import part
from hast_lightning.graph.operations import (
    BATCH_NORMS,
    CONCATENATIONS,
    LAYERS_WITH_PRODUCTS,
    calls,
    is_activation,
    is_rectifier,
    layer_of,
    rearranges,
    values_of,
)
from hast_lightning.quantization.axes import Placement


@part("placement", "simulated")
class Simulated(Placement):
    """Outputs of activation functions, as the papers simulate it (ZeroQ, GDFQ, IntraQ, HAST).

    The input and the outputs of linear bottlenecks stay in floating point.
    """

    def values(self, student: fx.GraphModule) -> list[fx.Node]:
        """Return the outputs of activation functions, in order of execution."""
        return [node for node in student.graph.nodes if is_activation(node, student)]


@part("placement", "integer")
class Integer(Placement):
    """Values that an integer engine stores, weights symmetric (Jacob et al., CVPR 2018, 3).

    The input, and what convolutions, linear layers, activation functions, sums, products,
    concatenations and averages put out. Not what

    - the engine computes in one go with what follows: a convolution or a sum before its
      activation, a convolution before its BatchNorm, a value that is made for one concatenation;
    - only passes on values that are quantized already: reshaping, slicing, max-pooling, padding
      with zeros, a ReLU of a quantized value;
    - only the network's own output is made of.
    """

    symmetric_weights = True
    needs_zero = True

    def values(self, student: fx.GraphModule) -> list[fx.Node]:
        """Return the values that an engine stores, in order of execution, each once."""
        stored: dict[fx.Node, None] = {}
        passed_on: set[fx.Node] = set()
        values = values_of(student.graph)
        for node in values:
            quantized = any(n in stored or n in passed_on for n in node.all_input_nodes)
            if rearranges(node, student) or (quantized and is_rectifier(node, student)):
                passed_on.update([node] if quantized else [])
            elif _is_stored(node, [use for use in _uses(node, student) if use in values], student):
                stored[node] = None
        return list(stored)


@part("placement", "layer_inputs")
class LayerInputs(Placement):
    """What convolutions and linear layers take in, as post-training codes simulate it.

    Normalizations, activation functions and sums in between stay in floating point, and so does
    the network's output. Of a concatenation, such as a skip of a U-Net, each operand has a range of
    its own. A timestep is a number, and is not quantized. What else uses a value that a layer takes
    in, such as a shortcut around it, sees it quantized, too.

    Source: Q-Diffusion (Li et al., ICCV 2023); EDA-DM (Liu et al., arXiv 2401.04585), which splits
    the weights behind a concatenation, too: here they have one scale a channel.
    """

    def values(self, student: fx.GraphModule) -> list[fx.Node]:
        """Return what layers with weights take in, in order of execution, each once."""
        computed = values_of(student.graph)
        found: set[fx.Node] = set()
        for node in student.graph.nodes:
            if isinstance(layer_of(node, student), LAYERS_WITH_PRODUCTS):
                found.update(_operands(node.all_input_nodes[0]))
        return [node for node in student.graph.nodes if node in found and node in computed]


def _operands(node: fx.Node) -> Iterator[fx.Node]:
    """Yield a value, or those that it is a concatenation of."""
    if not calls(node, CONCATENATIONS):
        yield node
        return
    for operand in node.all_input_nodes:
        yield from _operands(operand)


def _is_stored(node: fx.Node, uses: list[fx.Node], student: fx.GraphModule) -> bool:
    """Return whether an engine stores ``node``'s value, of which ``uses`` compute others."""
    if len(uses) == 1 and _is_merged(node, uses[0], student):
        return False
    return any(not is_activation(use, student) for use in uses)


def _is_merged(node: fx.Node, use: fx.Node, student: fx.GraphModule) -> bool:
    """Return whether the engine computes ``node`` and its only ``use`` in one go."""
    folded = isinstance(layer_of(use, student), BATCH_NORMS)
    folded = folded and isinstance(layer_of(node, student), LAYERS_WITH_PRODUCTS)
    return folded or calls(use, CONCATENATIONS)


def _uses(node: fx.Node, student: fx.GraphModule) -> Iterator[fx.Node]:
    """Yield the nodes that compute with ``node``'s value, however it was rearranged."""
    for user in node.users:
        if rearranges(user, student):
            yield from _uses(user, student)
        else:
            yield user
