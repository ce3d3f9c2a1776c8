"""The last layer of a classifier: what it takes in, and its row for each class."""

from __future__ import annotations

from torch import Tensor, fx, nn

from hast_lightning.core.network import Network, PretrainedNetwork
from hast_lightning.errors import ModelError
from hast_lightning.graph.operations import CONVOLUTION_LAYERS, layer_of
from hast_lightning.graph.tracing import trace


def classifier_input(network: Network) -> tuple[str, int]:
    """Return the node that the last layer takes in, and the width of its features.

    Raises:
        ModelError: there is no such layer.
    """
    return last_layer_input(network.graph_module, network.pretrained.name)


def last_layer_input(graph_module: fx.GraphModule, name: str) -> tuple[str, int]:
    """Return the node that the last layer of a graph takes in, and the width of its features.

    Args:
        graph_module: Of a network, or of one of several that teach together.
        name: The network's, for messages.

    Raises:
        ModelError: there is no such layer.
    """
    for node in reversed(graph_module.graph.nodes):
        layer = layer_of(node, graph_module)
        if isinstance(layer, (nn.Linear, *CONVOLUTION_LAYERS)):
            width = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
            return node.all_input_nodes[0].name, width
    raise ModelError(
        f"the network {name} ends in no linear layer or convolution, whose input is looked at"
    )


def classifier_rows(pretrained: PretrainedNetwork) -> Tensor:
    """Return a copy of the last layer's weights, (classes, features), float32.

    Raises:
        ModelError: no layer has a row for each class.
    """
    classes, graph_module = pretrained.num_classes, trace(pretrained.network)
    for node in reversed(graph_module.graph.nodes):
        layer = layer_of(node, graph_module)
        if isinstance(layer, (nn.Linear, *CONVOLUTION_LAYERS)) and layer.weight.shape[0] == classes:
            return layer.weight.detach().float().flatten(1).clone()
    raise ModelError(
        f"the network {pretrained.name} has no linear layer or convolution with a row for "
        f"each of its {classes} classes"
    )


def feature_vectors(values: Tensor) -> Tensor:
    """Return (N, C), float32, of vectors (N, C) or of maps (N, C, ...), which are averaged."""
    values = values.float()
    return values if values.dim() == 2 else values.flatten(2).mean(2)
