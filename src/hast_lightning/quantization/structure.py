"""Structure of a student, call by call: layers, quantizers, taps, and their cost.

The cost of arithmetic is counted in bit-operations, as in Bayesian Bits (van Baalen et al.,
NeurIPS 2020, appendix B.2): a layer's multiplications times the bits of its weights times the
bits of what it takes in, 32 for values in floating point. Only convolutions and linear layers
count; BatchNorms are part of them once folded.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from hast_lightning.core.bits import FLOAT_BITS
from hast_lightning.graph.names import value_names
from hast_lightning.graph.operations import (
    BATCH_NORMS,
    CONCATENATIONS,
    IDENTITIES,
    TRANSPOSED_LAYERS,
    calls,
    is_activation,
    is_rectifier,
    layer_of,
    rearranges,
)
from hast_lightning.graph.shapes import SHAPE, note_shapes
from hast_lightning.quantization.fake_quant import ActivationQuantizer, weight_bits
from hast_lightning.quantization.layer_bits import QUANTIZABLE

_AVERAGES = (
    *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, torch.mean, "mean"),
)
_AVERAGING_LAYERS = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)


@dataclass(frozen=True)
class Call:
    """A layer, a BatchNorm or a quantizer, with what directly follows and belongs to it.

    Attributes:
        name: dotted name of the layer or of the module, or the node's name of a function.
        operations: what is done, in order: ``3x3 /2``, ``BN``, ``ReLU``.
        output_shape: shape of the result for one image, without the image's dimension.
        parameters: how many, of the layer and of what is in this call with it.
        multiplications: multiply-accumulates for one image; 0 without a layer.
        weight_bits: bits of the layer's weights, 32 in floating point; none without a layer.
        input_bits: bits of what the layer takes in; none without a layer.
        output_bits: bits of the result; none where no quantizer follows.
        batch_norms: BatchNorms in this call.
        tap: whether teacher and student are aligned here.
    """

    name: str
    operations: tuple[str, ...]
    output_shape: tuple[int, ...]
    parameters: int
    multiplications: int
    weight_bits: int | None
    input_bits: int | None
    output_bits: int | None
    batch_norms: int
    tap: bool

    @property
    def bit_operations(self) -> int:
        """Return the bit-operations for one image."""
        return self.multiplications * (self.weight_bits or 0) * (self.input_bits or 0)

    @property
    def float_bit_operations(self) -> int:
        """Return the bit-operations for one image in floating point."""
        return self.multiplications * FLOAT_BITS**2


def list_calls(student: fx.GraphModule, taps: Collection[str], image: Tensor) -> list[Call]:
    """List the calls of a student, in order of execution.

    Args:
        student: A converted network that does not quantize yet.
        taps: Names of the nodes at which features are aligned.
        image: (1, C, H, W).
    """
    note_shapes(student, image)
    found, seen = [], set[fx.Node]()
    names = value_names(student.graph)
    for node in student.graph.nodes:
        if node not in seen and _begins(node, student):
            chain = [node, *_followers(node, student)]
            seen.update(chain)
            found.append(_call(chain, student, taps, names))
    return found


def value_bits(student: fx.GraphModule) -> dict[str, int]:
    """Return the bits of each quantized value by its name, in order of execution."""
    names, found = value_names(student.graph), {}
    for node in student.graph.nodes:
        layer = layer_of(node, student)
        if isinstance(layer, ActivationQuantizer):
            found[names[node.all_input_nodes[0]]] = layer.bits
    return found


def _begins(node: fx.Node, student: fx.GraphModule) -> bool:
    """Return whether a call begins here: a layer, a BatchNorm, or a quantized activation."""
    layer = layer_of(node, student)
    if isinstance(layer, (*QUANTIZABLE, ActivationQuantizer, *BATCH_NORMS)):
        return True
    return is_activation(node, student) and _only_follower(node, student) is not None


def _followers(node: fx.Node, student: fx.GraphModule) -> Iterator[fx.Node]:
    """The BatchNorm, the activation and the quantizer that take in nothing but this result."""
    while (follower := _only_follower(node, student)) is not None:
        yield follower
        node = follower


def _only_follower(node: fx.Node, student: fx.GraphModule) -> fx.Node | None:
    if len(node.users) != 1 or isinstance(layer_of(node, student), ActivationQuantizer):
        return None
    (user,) = node.users
    kinds = (*BATCH_NORMS, *IDENTITIES, ActivationQuantizer)
    belongs = isinstance(layer_of(user, student), kinds)
    belongs = belongs or is_activation(user, student)
    return user if belongs and len(user.all_input_nodes) == 1 else None


def _call(
    chain: list[fx.Node],
    student: fx.GraphModule,
    taps: Collection[str],
    names: Mapping[fx.Node, str],
) -> Call:
    layers = [layer_of(node, student) for node in chain]
    first, quantizer = layers[0], layers[-1]
    shape = _output_shape(chain[-1])
    weighted = first if isinstance(first, QUANTIZABLE) else None
    inputs = chain[0].all_input_nodes
    return Call(
        # All calls of a layer are of the same weights, and so have one name.
        name=str(chain[0].target) if weighted else names[_named_after(chain[0], student)],
        operations=tuple(_operations(chain, student)),
        output_shape=shape,
        parameters=sum(p.numel() for layer in layers for p in _parameters(layer)),
        multiplications=_multiplications(weighted, chain[0]) if weighted else 0,
        weight_bits=weight_bits(weighted) if weighted else None,
        input_bits=_bits_of(inputs[0], student) if weighted else None,
        output_bits=quantizer.bits if isinstance(quantizer, ActivationQuantizer) else None,
        batch_norms=sum(isinstance(layer, BATCH_NORMS) for layer in layers),
        tap=any(node.name in taps for node in chain),
    )


def _named_after(node: fx.Node, student: fx.GraphModule) -> fx.Node:
    """A quantizer that follows nothing else of the call is named after what it quantizes."""
    quantizes = isinstance(layer_of(node, student), ActivationQuantizer)
    return node.all_input_nodes[0] if quantizes else node


def _parameters(layer: nn.Module | None) -> Iterator[nn.Parameter]:
    if layer is not None and not isinstance(layer, ActivationQuantizer):
        yield from (value for name, value in layer.named_parameters() if "quantizer" not in name)


def _output_shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta[SHAPE][1:])


def _multiplications(layer: nn.Module, node: fx.Node) -> int:
    """Each number of the result is a sum over the inputs that one output channel sees.

    In a transposed convolution each position of the input is multiplied with all weights.
    """
    assert isinstance(layer.weight, Tensor)
    if isinstance(layer, TRANSPOSED_LAYERS):
        return math.prod(_output_shape(node.all_input_nodes[0])[1:]) * layer.weight.numel()
    return math.prod(_output_shape(node)) * layer.weight[0].numel()


def _bits_of(node: fx.Node, student: fx.GraphModule) -> int:
    """Bits of a value; an average counts as many as what is averaged, and a sum is no integer."""
    pending, seen, most = [node], set[fx.Node](), 0
    while pending:
        at = pending.pop()
        if at in seen:
            continue
        seen.add(at)
        layer = layer_of(at, student)
        if isinstance(layer, ActivationQuantizer):
            most = max(most, layer.bits)
            continue
        passes = rearranges(at, student) or is_rectifier(at, student)
        passes = passes or isinstance(layer, _AVERAGING_LAYERS)
        passes = passes or calls(at, (*_AVERAGES, *CONCATENATIONS))
        sources = _tensors(at) if passes else []
        if not sources:
            return FLOAT_BITS
        pending.extend(sources)
    return most


def _tensors(node: fx.Node) -> list[fx.Node]:
    """Inputs that are values; the others are sizes."""
    return [source for source in node.all_input_nodes if SHAPE in source.meta]


def _operations(chain: list[fx.Node], student: fx.GraphModule) -> Iterator[str]:
    if isinstance(layer_of(chain[0], student), ActivationQuantizer):
        chain = [chain[0].all_input_nodes[0]]
    for node in chain:
        layer = layer_of(node, student)
        if isinstance(layer, _ConvNd):
            yield _describe_convolution(layer)
        elif isinstance(layer, nn.Linear):
            yield "linear"
        elif isinstance(layer, BATCH_NORMS):
            yield "BN"
        elif node.op == "placeholder":
            yield "input"
        elif not isinstance(layer, (ActivationQuantizer, *IDENTITIES)):
            function = getattr(node.target, "__name__", str(node.target))
            yield function.strip("_") if layer is None else type(layer).__name__


def _describe_convolution(layer: _ConvNd) -> str:
    """For example ``3x3``, ``3x3 /2``, ``3x3 dw`` (depthwise), ``3x3 g32`` (32 groups).

    A transposed one is ``3x3 up2`` for a stride of 2; ``d2`` is a dilation of 2.
    """
    parts = ["x".join(map(str, layer.kernel_size))]
    if isinstance(layer, TRANSPOSED_LAYERS):
        parts.append(f"up{max(layer.stride)}")
    elif max(layer.stride) > 1:
        parts.append(f"/{max(layer.stride)}")
    if max(layer.dilation) > 1:
        parts.append(f"d{max(layer.dilation)}")
    if layer.groups > 1:
        depthwise = layer.groups == layer.in_channels
        parts.append("dw" if depthwise else f"g{layer.groups}")
    return " ".join(parts)
