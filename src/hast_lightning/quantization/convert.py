"""From a pretrained network to its fake-quantized student."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import fx, nn

from hast_lightning.errors import ModelError
from hast_lightning.models.graph import trace
from hast_lightning.models.operations import (
    LAYERS_WITH_PRODUCTS,
    PRODUCTS_WITH_WEIGHTS,
    calls,
    is_activation,
    layer_of,
)
from hast_lightning.quantization.fake_quant import (
    ActivationQuantizer,
    QuantConv2d,
    QuantLinear,
    WeightQuantizer,
)
from hast_lightning.quantization.spec import QuantizationSpec

QUANTIZERS_ATTRIBUTE = "activation_quantizers"


def convert(network: nn.Module, spec: QuantizationSpec) -> fx.GraphModule:
    """A student of ``network``: a copy with fake-quantized weights and activations.

    Every convolution and linear layer gets quantized weights, the first and the last
    included; every output of an activation function gets its own quantizer, also where one
    module is called several times. The input image, biases, BatchNorm and the outputs of linear
    bottlenecks stay in floating point (methods of ZeroQ, GDFQ, IntraQ and HAST, whose networks
    have ReLU and ReLU6 only).

    Args:
        network: Left as it is.
        spec: Bit widths and options.

    Returns:
        A graph module in evaluation mode whose parameters have the names that they have in
        ``network``; activations pass through unquantized until its mode is changed.

    Raises:
        ModelError: the network cannot be traced, has nothing to quantize, or has weights that
            would stay unquantized.
    """
    student = trace(copy.deepcopy(network))
    _refuse_unsupported(student)
    layers = _quantize_weights(student, spec)
    activations = _insert_activation_quantizers(student, spec)
    if not layers or not activations:
        missing = "convolution or linear layer" if not layers else "activation function"
        raise ModelError(f"the network has no {missing}, so there is nothing to quantize")
    student.graph.lint()
    student.recompile()
    student.requires_grad_(True)
    return student.eval()


def _refuse_unsupported(student: fx.GraphModule) -> None:
    """Refuse what would stay in floating point without anyone noticing."""
    for node in student.graph.nodes:
        layer = layer_of(node, student)
        supported = type(layer) in (nn.Conv2d, nn.Linear)
        if isinstance(layer, LAYERS_WITH_PRODUCTS) and not supported:
            raise ModelError(
                f"the network's layer {node.target} is a {type(layer).__name__}, which cannot "
                "be quantized: only Conv2d and Linear can"
            )
        if calls(node, PRODUCTS_WITH_WEIGHTS):
            function = getattr(node.target, "__name__", str(node.target))
            raise ModelError(
                f"the network calls {function} at {node.name}, whose weights belong to no layer "
                "and cannot be quantized: use nn.Conv2d or nn.Linear there"
            )


def _quantize_weights(student: fx.GraphModule, spec: QuantizationSpec) -> int:
    """Replace convolutions and linear layers; returns how many."""
    replaced = 0
    for name, layer in list(student.named_modules()):
        quantizer = WeightQuantizer(spec.weight_bits, spec.include_zero)
        if type(layer) is nn.Conv2d:
            student.set_submodule(name, QuantConv2d.from_float(layer, quantizer))
        elif type(layer) is nn.Linear:
            student.set_submodule(name, QuantLinear.from_float(layer, quantizer))
        else:
            continue
        replaced += 1
    return replaced


def _insert_activation_quantizers(student: fx.GraphModule, spec: QuantizationSpec) -> int:
    """Put a quantizer behind every activation of the graph; returns how many."""
    quantizers = nn.ModuleDict()
    student.add_submodule(QUANTIZERS_ATTRIBUTE, quantizers)
    for node in [node for node in student.graph.nodes if is_activation(node, student)]:
        quantizers[node.name] = ActivationQuantizer(spec)
        with student.graph.inserting_after(node):
            quantized = student.graph.call_module(f"{QUANTIZERS_ATTRIBUTE}.{node.name}", (node,))
        node.replace_all_uses_with(quantized, _is_other(quantized))
    return len(quantizers)


def _is_other(node: fx.Node) -> Callable[[fx.Node], bool]:
    """Whether a node is another one than ``node``."""
    return lambda other: other is not node
