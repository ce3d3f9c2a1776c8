"""From a pretrained network to its student: fake-quantized, or a new one in floating point."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Mapping

from torch import Tensor, fx, nn

from hast_lightning.core.bits import FLOAT_BITS
from hast_lightning.errors import ConfigurationError, ModelError
from hast_lightning.graph.afresh import drawn_afresh
from hast_lightning.graph.attention_nodes import find_attentions
from hast_lightning.graph.depthwise import keep_depthwise_in_float32
from hast_lightning.graph.operations import (
    LAYERS_WITH_PRODUCTS,
    MATRIX_PRODUCTS,
    PRODUCTS_WITH_WEIGHTS,
    TRANSPOSED_LAYERS,
    calls,
    is_constant,
    layer_of,
)
from hast_lightning.graph.timesteps import without_timesteps
from hast_lightning.graph.tracing import foldable_batch_norms, trace
from hast_lightning.graph.weights import output_first
from hast_lightning.quantization.binary import BinaryWeightQuantizer
from hast_lightning.quantization.fake_quant import QUANTIZED, WeightQuantizer
from hast_lightning.quantization.layer_bits import QUANTIZABLE, BitPlan, plan_bits
from hast_lightning.quantization.per_tensor import FoldedFactors
from hast_lightning.quantization.settings import QuantizerConfig
from hast_lightning.quantization.size import UNTIED

_log = logging.getLogger(__name__)

QUANTIZERS_ATTRIBUTE = "activation_quantizers"


def student_of(network: nn.Module, settings: QuantizerConfig, seed: int) -> fx.GraphModule:
    """Return the student of a network: converted, or a new one like it where nothing is quantized.

    Raises:
        UserError: the network cannot be quantized, or drawn afresh.
    """
    student = drawn_afresh(network, seed) if settings.floating else convert(network, settings)
    keep_depthwise_in_float32(student)
    return student


def convert(network: nn.Module, settings: QuantizerConfig) -> fx.GraphModule:
    """Return a student of ``network``: a copy with fake-quantized weights and activations.

    Every convolution and linear layer gets quantized weights, the first and the last
    included; every output of an activation function gets its own quantizer, also where one
    module is called several times. The input image, biases, BatchNorm and the outputs of linear
    bottlenecks stay in floating point (methods of ZeroQ, GDFQ, IntraQ and HAST, whose networks
    have ReLU and ReLU6 only); another placement says so itself. What is to have 32 bits stays as
    it is, too.

    Args:
        network: Left as it is.
        settings: Bit widths and options.

    Returns:
        A graph module in evaluation mode whose parameters have the names that they have in
        ``network``, learned step sizes apart; activations pass through unquantized until its
        mode is changed.

    Raises:
        ModelError: the network cannot be traced, has nothing to quantize, or has weights that
            would stay unquantized.
        ConfigurationError: an override of ``settings`` matches nothing, or they leave nothing to
            quantize.
    """
    student = trace(copy.deepcopy(network))
    _refuse_unsupported(student)
    _refuse_shared_weights(student)
    _untie(student)
    nodes = without_timesteps(settings.placement.values(student), student)
    plan = plan_bits(student, nodes, settings)
    _refuse_nothing(student, nodes, plan, settings)
    _warn_of_attention(student, settings)
    _quantize_weights(student, settings, plan)
    _insert_activation_quantizers(student, settings, plan.activations)
    student.graph.lint()
    student.recompile()
    student.requires_grad_(True)
    return student.eval()


def _refuse_nothing(
    student: fx.GraphModule, nodes: Collection[fx.Node], plan: BitPlan, settings: QuantizerConfig
) -> None:
    """Refuse a network without what is to be quantized."""
    missing = ""
    if not any(isinstance(layer, QUANTIZABLE) for layer in student.modules()):
        missing = "convolution or linear layer"
    elif not nodes and settings.widths.activations != FLOAT_BITS:
        missing = "activation function"
    if missing:
        raise ModelError(f"the network has no {missing}, so there is nothing to quantize")
    if not (plan.weights or plan.activations):
        raise ConfigurationError(
            "quantizer.overrides leaves all that could be quantized in floating point"
        )


def _warn_of_attention(student: fx.GraphModule, settings: QuantizerConfig) -> None:
    """Say where products of attention stay in floating point."""
    if settings.placement.kind == "simulated" and find_attentions(student):
        _log.warning(
            "quantizer.placement=simulated rounds outputs of activation functions alone: what "
            "products of attention multiply stays in floating point; quantizer=transformer rounds "
            "it"
        )


def _refuse_unsupported(student: fx.GraphModule) -> None:
    """Refuse what would stay in floating point without anyone noticing."""
    for node in student.graph.nodes:
        layer = layer_of(node, student)
        if isinstance(layer, LAYERS_WITH_PRODUCTS):
            _refuse_unsupported_layer(str(node.target), layer)
        if calls(node, PRODUCTS_WITH_WEIGHTS) or _multiplies_parameter(node):
            function = getattr(node.target, "__name__", str(node.target))
            raise ModelError(
                f"the network calls {function} at {node.name}, whose weights belong to no layer "
                "and cannot be quantized: use a layer such as nn.Conv2d or nn.Linear there"
            )


def _refuse_shared_weights(student: fx.GraphModule) -> None:
    """Refuse transposed convolutions that share weights, which are copied output channels first."""
    owners: dict[int, list[str]] = {}
    for name, layer in student.named_modules():
        if isinstance(layer, QUANTIZABLE):
            owners.setdefault(id(layer.weight), []).append(name)
    for names in owners.values():
        if len(names) > 1 and any(
            isinstance(student.get_submodule(name), TRANSPOSED_LAYERS) for name in names
        ):
            raise ModelError(
                f"the network's layers {' and '.join(names)} share their weights, which no student "
                "with a transposed convolution among them can: give each its own"
            )


def _untie(student: fx.GraphModule) -> None:
    """Give layers weights of their own that they share with an embedding.

    A lookup stays in floating point: of a table on the grid of the output layer every token would
    begin with an error. So the table keeps its weights, and the layer that is quantized has a copy.
    """
    tables = {id(m.weight) for m in student.modules() if isinstance(m, nn.Embedding)}
    for layer in student.modules():
        if isinstance(layer, QUANTIZABLE) and id(layer.weight) in tables:
            weight = layer.weight
            assert isinstance(weight, Tensor)
            student.meta[UNTIED] = student.meta.get(UNTIED, 0) + weight.numel()
            layer.weight = nn.Parameter(weight.detach().clone())


def _refuse_unsupported_layer(name: str, layer: nn.Module) -> None:
    if type(layer) not in QUANTIZABLE:
        kinds = ", ".join(kind.__name__ for kind in QUANTIZABLE)
        raise ModelError(
            f"the network's layer {name} is a {type(layer).__name__}, which cannot be quantized: "
            f"only {kinds} can"
        )
    if not isinstance(layer.weight, nn.Parameter):
        raise ModelError(
            f"the network's layer {name} computes its weight anew at every call, as weight and "
            "spectral normalization do: make it a plain parameter before quantizing"
        )


def _multiplies_parameter(node: fx.Node) -> bool:
    """Return whether a product has a parameter of the network, or what is made of it, in it."""
    return calls(node, MATRIX_PRODUCTS) and any(map(is_constant, node.all_input_nodes))


def _quantize_weights(student: fx.GraphModule, settings: QuantizerConfig, plan: BitPlan) -> None:
    """Replace convolutions and linear layers."""
    convolutions = [kind for kind in QUANTIZED if kind is not nn.Linear]
    norms = {layer: norm for layer, _, norm in foldable_batch_norms(student, convolutions)}
    for name, bits_of_layer in plan.weights.items():
        layer = student.get_submodule(name)
        quantizer: WeightQuantizer = (
            BinaryWeightQuantizer()
            if bits_of_layer == 1
            else settings.rounding.weight_quantizer(
                settings.ranges, bits_of_layer, output_first(layer), settings
            )
        )
        quantized = QUANTIZED[type(layer)].from_float(layer, quantizer)
        if settings.per_tensor:
            quantizer.share(FoldedFactors(quantized, norms.get(layer)), quantized.weight)
        quantized.bits_are_set = name in plan.chosen
        student.set_submodule(name, quantized)


def _insert_activation_quantizers(
    student: fx.GraphModule, settings: QuantizerConfig, bits: Mapping[fx.Node, int]
) -> None:
    """Put a quantizer behind every node of ``bits``."""
    placement = settings.placement
    made = {
        node: placement.activation_quantizer(node, student, settings.ranges, width, settings)
        for node, width in bits.items()
    }
    quantizers = nn.ModuleDict()
    student.add_submodule(QUANTIZERS_ATTRIBUTE, quantizers)
    for node, quantizer in made.items():
        # A value may be called what a dictionary's method is called, such as values.
        key = f"{node.name}_" if hasattr(quantizers, node.name) else node.name
        quantizers[key] = quantizer
        takers = {user for user in node.users if placement.takes(user, node, student)}
        with student.graph.inserting_after(_last_before(node)):
            quantized = student.graph.call_module(f"{QUANTIZERS_ATTRIBUTE}.{key}", (node,))
        node.replace_all_uses_with(quantized, takers.__contains__)


def _last_before(node: fx.Node) -> fx.Node:
    """Return the node behind which something new goes: inputs of the network stay in front."""
    while node.op == "placeholder" and node.next.op == "placeholder":
        node = node.next
    return node
