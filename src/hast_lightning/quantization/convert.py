"""From a pretrained network to its fake-quantized student."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import fx, nn
from torch.nn import functional as F

from hast_lightning.errors import ModelError
from hast_lightning.models.graph import trace
from hast_lightning.quantization.fake_quant import (
    ActivationQuantizer,
    QuantConv2d,
    QuantLinear,
    WeightQuantizer,
)
from hast_lightning.quantization.spec import QuantizationSpec

ACTIVATION_MODULES = (nn.ReLU, nn.ReLU6)
ACTIVATION_FUNCTIONS = (F.relu, F.relu6, torch.relu, torch.relu_)
ACTIVATION_METHODS = ("relu", "relu_")
QUANTIZERS_ATTRIBUTE = "activation_quantizers"


def convert(network: nn.Module, spec: QuantizationSpec) -> fx.GraphModule:
    """A student of ``network``: a copy with fake-quantized weights and activations.

    Every convolution and linear layer gets quantized weights, the first and the last
    included; every output of a ReLU or ReLU6 gets its own quantizer, also where one module
    is called several times. The input image, biases, BatchNorm and the outputs of linear
    bottlenecks stay in floating point (methods of ZeroQ, GDFQ, IntraQ and HAST).

    Args:
        network: Left as it is.
        spec: Bit widths and options.

    Returns:
        A graph module in evaluation mode whose parameters have the names that they have in
        ``network``; activations pass through unquantized until its mode is changed.

    Raises:
        ModelError: the network cannot be traced, or has nothing to quantize.
    """
    student = trace(copy.deepcopy(network))
    layers = _quantize_weights(student, spec)
    activations = _insert_activation_quantizers(student, spec)
    if not layers or not activations:
        missing = "convolution or linear layer" if not layers else "ReLU or ReLU6"
        raise ModelError(f"the network has no {missing}, so there is nothing to quantize")
    student.graph.lint()
    student.recompile()
    student.requires_grad_(True)
    return student.eval()


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
    for node in [node for node in student.graph.nodes if _is_activation(node, student)]:
        quantizers[node.name] = ActivationQuantizer(spec)
        with student.graph.inserting_after(node):
            quantized = student.graph.call_module(f"{QUANTIZERS_ATTRIBUTE}.{node.name}", (node,))
        node.replace_all_uses_with(quantized, _is_other(quantized))
    return len(quantizers)


def _is_other(node: fx.Node) -> Callable[[fx.Node], bool]:
    """Whether a node is another one than ``node``."""
    return lambda other: other is not node


def _is_activation(node: fx.Node, graph_module: fx.GraphModule) -> bool:
    if node.op == "call_module":
        return isinstance(graph_module.get_submodule(str(node.target)), ACTIVATION_MODULES)
    if node.op == "call_function":
        return node.target in ACTIVATION_FUNCTIONS
    return node.op == "call_method" and node.target in ACTIVATION_METHODS
