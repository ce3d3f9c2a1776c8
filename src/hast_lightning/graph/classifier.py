"""The last layer of a classifier, and the features that it takes in."""

from __future__ import annotations

from torch import Tensor, nn

from hast_lightning.core.network import Network
from hast_lightning.errors import ModelError
from hast_lightning.graph.operations import layer_of


def classifier_input(network: Network) -> tuple[str, int]:
    """Return the node that the last layer takes in, and the width of its features.

    Raises:
        ModelError: there is no such layer.
    """
    graph_module = network.graph_module
    for node in reversed(graph_module.graph.nodes):
        layer = layer_of(node, graph_module)
        if isinstance(layer, nn.Linear | nn.Conv2d):
            width = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
            return node.all_input_nodes[0].name, width
    raise ModelError(
        f"the network {network.pretrained.name} ends in no Linear or Conv2d layer, whose input "
        "is wanted as its features"
    )


def feature_vectors(values: Tensor) -> Tensor:
    """Return (N, C), float32, of vectors (N, C) or of maps (N, C, ...), which are averaged."""
    values = values.float()
    return values if values.dim() == 2 else values.flatten(2).mean(2)
