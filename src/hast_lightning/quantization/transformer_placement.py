"""Placements for vision transformers: what enters linear layers and the products of attention.

Methods differ in what they quantize, so their figures do not belong into one table.
"""

from __future__ import annotations

from torch import fx

from hast_lightning.core.checks import require_choice
from hast_lightning.core.part import part
from hast_lightning.graph.attention_nodes import factors, softmax_behind
from hast_lightning.graph.operations import is_constant, layer_of, rearranges, values_of
from hast_lightning.quantization.axes import Placement, QuantizerSettings, Ranges
from hast_lightning.quantization.fake_quant import QUANTIZED, ActivationQuantizer
from hast_lightning.quantization.log2 import Log2Quantizer

PROBABILITIES = ("log2", "uniform", "float")
_SUMS = ("add", "iadd", "add_")
_FILLS = ("masked_fill", "where")


@part("placement", "transformer")
class Transformer(Placement):
    """What linear layers, convolutions and both products of attention take in.

    A value that also goes elsewhere, as the output of a LayerNorm into a residual sum, is rounded
    only where it enters a product. Softmax, LayerNorm and GELU compute in floating point. Defaults:
    MimiQ's (Choi et al., AAAI 2025) operands, with the powers of two of FQ-ViT (Lin et al., IJCAI
    2022) behind the softmax.
    """

    probabilities: str = "log2"
    """What a softmax puts out, as operand: rounded to powers of two (``log2``, FQ-ViT, SARDFQ), to
    a grid as other values (``uniform``, MimiQ), or left in floating point (``float``, PSAQ)."""
    scores: bool = False
    """Quantize what the softmax takes in, before constants such as masks are added to it."""
    sums: bool = False
    """Quantize residual sums, wherever they go."""
    picture: bool = False
    """Quantize the picture."""

    def __post_init__(self) -> None:
        require_choice("probabilities", self.probabilities, PROBABILITIES)

    def values(self, student: fx.GraphModule) -> list[fx.Node]:
        """Return the nodes whose values are rounded somewhere, in order of execution."""
        values = values_of(student.graph)
        wanted: set[fx.Node] = set()
        for node in values:
            wanted.update(each for each in _operands(node, student) if each in values)
            if self._everywhere(node, student):
                wanted.add(node)
        return [node for node in values if node in wanted and not self._left_out(node, student)]

    def _left_out(self, node: fx.Node, student: fx.GraphModule) -> bool:
        if softmax_behind(node, student) is not None:
            return self.probabilities == "float"
        return not self.picture and _is_picture(node, student)

    def _everywhere(self, node: fx.Node, student: fx.GraphModule) -> bool:
        """Return whether all users take in the rounded value, and not the products alone."""
        if self.sums and is_sum(node):
            return True
        return self.scores and not _is_masked(node) and _enters_softmax(node, student)

    def takes(self, user: fx.Node, node: fx.Node, student: fx.GraphModule) -> bool:
        """Return whether ``user`` takes in the rounded value of ``node``."""
        return node in _operands(user, student) or self._everywhere(node, student)

    def activation_quantizer(
        self,
        node: fx.Node,
        student: fx.GraphModule,
        ranges: Ranges,
        bits: int,
        settings: QuantizerSettings,
    ) -> ActivationQuantizer:
        """Return the quantizer of a node's value: powers of two behind a softmax."""
        if self.probabilities == "log2" and softmax_behind(node, student) is not None:
            return Log2Quantizer(bits)
        return ranges.activation_quantizer(bits, settings)


@part("placement", "psaq")
class PSAQ(Transformer):
    """What PSAQ-ViT quantizes: symmetric weights, scores and sums too, probabilities not.

    Source: released code of PSAQ-ViT (Li et al., ECCV 2022). Ours: queries, keys and values have a
    range each, where the code has one of the three together; the scale of weights is the least that
    spans them.
    """

    probabilities: str = "float"
    scores: bool = True
    sums: bool = True
    picture: bool = True

    symmetric_weights = True


def _operands(node: fx.Node, student: fx.GraphModule) -> list[fx.Node]:
    """Return what a node multiplies: the input of a layer with weights, both sides of a product."""
    if isinstance(layer_of(node, student), tuple(QUANTIZED)):
        return node.all_input_nodes[:1]
    return factors(node)


def _enters_softmax(node: fx.Node, student: fx.GraphModule) -> bool:
    """Return whether a softmax takes a value in, as it is or behind masks."""
    return any(
        softmax_behind(user, student) is user
        or (_is_masked(user) and _enters_softmax(user, student))
        for user in node.users
    )


def _is_masked(node: fx.Node) -> bool:
    """Return whether a node adds a constant to a value, or fills some places of it.

    The lowest float32 stands for what is masked out: a range with it has nothing else.
    """
    name = getattr(node.target, "__name__", node.target)
    if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
        return False
    added = name in _SUMS and len(node.all_input_nodes) > 1
    constant = added and any(map(is_constant, node.all_input_nodes))
    return constant or name in _FILLS


def is_sum(node: fx.Node) -> bool:
    """Return whether a node adds two values of the network, as a residual connection does."""
    name = getattr(node.target, "__name__", node.target)
    added = node.op in ("call_function", "call_method") and name in _SUMS
    values = [each for each in node.all_input_nodes if not is_constant(each)]
    return added and len(values) == 2


def _is_picture(node: fx.Node, student: fx.GraphModule) -> bool:
    """Return whether a value is the network's input, however it was rearranged."""
    while node.op != "placeholder":
        if not rearranges(node, student) or not node.all_input_nodes:
            return False
        node = node.all_input_nodes[0]
    return True
