"""Kinds of operations in a network's graph: activations, layers with weights, and more.

A graph spells one operation in several ways: as a layer of ``torch.nn``, as a function, or as
a method of a tensor (by its name).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence

import torch
from torch import fx, nn
from torch.fx.node import Argument
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from hast_lightning.graph.outputs import is_joint

ACTIVATION_LAYERS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Hardsigmoid,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.Tanh,
    nn.RReLU,
    nn.Threshold,
)
RECTIFIERS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")
ACTIVATION_FUNCTIONS = (
    *RECTIFIERS,
    *(F.relu6, F.leaky_relu, F.prelu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.rrelu),
    *(F.hardswish, F.hardtanh, F.hardsigmoid, F.sigmoid, F.tanh, F.softplus, F.softsign),
    *(F.leaky_relu_, F.elu_, F.hardtanh_, F.rrelu_, F.threshold),
    *(torch.selu, torch.selu_, torch.celu, torch.celu_, torch.rrelu, torch.prelu),
    *(torch.sigmoid, torch.sigmoid_, torch.tanh, torch.tanh_),
    *("sigmoid", "sigmoid_", "tanh", "tanh_"),
    # ReLU and ReLU6 by another name.
    *(torch.clamp, torch.clamp_, torch.clamp_min, torch.clamp_min_, torch.clip, torch.clip_),
    *("clamp", "clamp_", "clamp_min", "clamp_min_", "clip", "clip_"),
)
CONVOLUTION_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_LAYERS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d)
PRODUCTS_WITH_WEIGHTS = (
    *CONVOLUTIONS,
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    *(F.linear, F.bilinear, F.multi_head_attention_forward, F.scaled_dot_product_attention),
)
MATRIX_PRODUCTS = (
    *(operator.matmul, torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm),
    *(torch.einsum, torch.tensordot, "matmul", "mm", "bmm", "addmm", "baddbmm"),
)
LAYERS_WITH_PRODUCTS = (
    *(_ConvNd, nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase),
    *(nn.Transformer, nn.TransformerEncoder, nn.TransformerEncoderLayer),
    *(nn.TransformerDecoder, nn.TransformerDecoderLayer),
)
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack)

# What does nothing in evaluation mode.
IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
# What puts out nothing but values that it takes in (and zeros): values on a grid stay on it.
REARRANGING_LAYERS = (
    *(*IDENTITIES, nn.AlphaDropout),
    *(nn.Flatten, nn.Unflatten, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d),
    *(nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.UpsamplingNearest2d),
)
REARRANGING_FUNCTIONS = (
    *(operator.getitem, torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze),
    *(torch.permute, torch.transpose, torch.swapaxes, torch.movedim, torch.roll, torch.flip),
    *(torch.chunk, torch.split, torch.unbind, torch.narrow, torch.clone),
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool2d),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
    *(F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle),
    *(F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout),
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "contiguous"),
    *("permute", "transpose", "swapaxes", "movedim", "roll", "flip", "repeat"),
    *("chunk", "split", "unbind", "narrow", "select", "clone", "detach"),
)
# torchvision's layer and function, by the name of their module: importing them takes seconds, and
# an exported network is read without torchvision.
_STOCHASTIC_DEPTH = "torchvision.ops.stochastic_depth"
# What a graph carries beside values: shapes, and numbers that are made from them.
SHAPES = ("size", "dim", "numel", "stride", "type", "item", "get_device", "is_contiguous")
SHAPE_ATTRIBUTES = ("shape", "ndim", "dtype", "device", "is_cuda")


def layer_of(node: Argument, graph_module: fx.GraphModule) -> nn.Module | None:
    """Return the layer that ``node`` calls; none if it calls no layer."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return graph_module.get_submodule(str(node.target))
    return None


def calls(node: fx.Node, functions: Sequence[object]) -> bool:
    """Return whether ``node`` calls one of these functions or (by name) tensor methods."""
    return node.op in ("call_function", "call_method") and node.target in functions


def is_activation(node: fx.Node, graph_module: fx.GraphModule) -> bool:
    """Return whether ``node`` is an activation function, however it is spelled."""
    layer = layer_of(node, graph_module)
    return isinstance(layer, ACTIVATION_LAYERS) or calls(node, ACTIVATION_FUNCTIONS)


def is_rectifier(node: fx.Node, graph_module: fx.GraphModule) -> bool:
    """Return whether ``node`` is a ReLU, however it is spelled."""
    return isinstance(layer_of(node, graph_module), nn.ReLU) or calls(node, RECTIFIERS)


def makes_vectors(node: fx.Node, graph_module: fx.GraphModule) -> bool:
    """Return whether ``node`` leaves (N, values) of maps: flattens them, or takes their means.

    Of a mean only that it is one: whoever asks knows that it is over all places.
    """
    layer = layer_of(node, graph_module)
    if isinstance(layer, nn.Flatten):
        return (layer.start_dim, layer.end_dim) == (1, -1)
    if calls(node, (torch.flatten, "flatten")):
        ends = {"start_dim": 0, "end_dim": -1} | node.kwargs
        ends |= dict(zip(ends, node.args[1:], strict=False))
        return (ends["start_dim"], ends["end_dim"]) == (1, -1)
    if calls(node, (torch.mean, "mean")):
        return not (node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False))
    return False


def is_depthwise(layer: nn.Module | None) -> bool:
    """Return whether each output channel of a convolution sees one input channel alone."""
    return isinstance(layer, CONVOLUTION_LAYERS) and layer.groups == layer.in_channels > 1


def is_pointwise(layer: nn.Module | None) -> bool:
    """Return whether each place of a convolution's output sees one place, of all channels."""
    return (
        isinstance(layer, CONVOLUTION_LAYERS)
        and set(layer.kernel_size) == {1}
        and layer.groups == 1
    )


def rearranges(node: fx.Node, graph_module: fx.GraphModule) -> bool:
    """Return whether ``node`` only passes values on: all, some, reordered, or with zeros."""
    layer = layer_of(node, graph_module)
    if isinstance(layer, nn.Upsample):
        return layer.mode == "nearest"
    if calls(node, (F.interpolate,)):
        return _argument(node, 3, "mode", "nearest") == "nearest"
    if calls(node, (F.pad,)):
        return not _argument(node, 3, "value", None)
    if is_stochastic_depth(node, layer):
        return True
    alone = calls(node, CONCATENATIONS) and len(node.all_input_nodes) == 1
    return alone or isinstance(layer, REARRANGING_LAYERS) or calls(node, REARRANGING_FUNCTIONS)


def is_stochastic_depth(node: fx.Node, layer: nn.Module | None) -> bool:
    """Return whether ``node``, which may call ``layer``, drops whole branches in training."""
    what = node.target if layer is None else type(layer)
    return getattr(what, "__module__", None) == _STOCHASTIC_DEPTH


def _argument(node: fx.Node, position: int, name: str, default: object) -> object:
    """An argument of a function that is called, given by position or by name."""
    given = node.args[position] if len(node.args) > position else default
    return node.kwargs.get(name, given)


def is_constant(node: fx.Node) -> bool:
    """Return whether a value is a tensor of the network's own, or made of such alone."""
    sources = node.all_input_nodes
    made = node.op.startswith("call_") and bool(sources) and all(map(is_constant, sources))
    return node.op == "get_attr" or made


def constants_of(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Return the constants (:func:`is_constant`) among nodes in order of execution."""
    constants: set[fx.Node] = set()
    for node in nodes:
        sources = node.all_input_nodes
        computed = node.op.startswith("call_") and sources and constants.issuperset(sources)
        if node.op == "get_attr" or computed:
            constants.add(node)
    return constants


def values_of(graph: fx.Graph) -> dict[fx.Node, None]:
    """Return the nodes that compute a tensor from the network's input, in order.

    The others are parameters and shapes, and numbers that are made from shapes; and what joins
    several outputs, which no file has.
    """
    values: dict[fx.Node, None] = {}
    for node in graph.nodes:
        derived = node.op.startswith("call_") and not (_asks_for_shape(node) or is_joint(node))
        derived = derived and any(source in values for source in node.all_input_nodes)
        if derived or node.op == "placeholder":
            values[node] = None
    return values


def _asks_for_shape(node: fx.Node) -> bool:
    attribute = node.target is getattr and node.args[1] in SHAPE_ATTRIBUTES
    return attribute or (node.op == "call_method" and node.target in SHAPES)
