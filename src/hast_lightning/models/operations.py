"""Which operations of a network's graph are what: activations, and layers with weights.

A graph spells one operation in several ways: as a layer of ``torch.nn``, as a function, or as
a method of a tensor (by its name).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx, nn
from torch.fx.node import Argument
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

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
    nn.Tanh,
)
ACTIVATION_FUNCTIONS = (
    *(F.relu, F.relu6, F.leaky_relu, F.prelu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish),
    *(F.hardswish, F.hardtanh, F.hardsigmoid, F.sigmoid, F.tanh, F.softplus),
    *(torch.relu, torch.relu_, torch.sigmoid, torch.tanh, torch.prelu),
    *("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_"),
)
CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d)
PRODUCTS_WITH_WEIGHTS = (
    *CONVOLUTIONS,
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, torch.conv_transpose2d),
    *(F.linear, F.bilinear, F.multi_head_attention_forward, F.scaled_dot_product_attention),
)
LAYERS_WITH_PRODUCTS = (_ConvNd, nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase)


def layer_of(node: Argument, graph_module: fx.GraphModule) -> nn.Module | None:
    """The layer that ``node`` calls; none if it calls no layer."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return graph_module.get_submodule(str(node.target))
    return None


def calls(node: fx.Node, functions: Sequence[object]) -> bool:
    """Whether ``node`` calls one of these functions or (by name) methods of a tensor."""
    return node.op in ("call_function", "call_method") and node.target in functions


def is_activation(node: fx.Node, graph_module: fx.GraphModule) -> bool:
    """Whether ``node`` is an activation function, however it is spelled."""
    layer = layer_of(node, graph_module)
    return isinstance(layer, ACTIVATION_LAYERS) or calls(node, ACTIVATION_FUNCTIONS)
