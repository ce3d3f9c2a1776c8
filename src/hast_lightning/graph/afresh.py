"""A new network of the same architecture."""

from __future__ import annotations

import copy

import torch
from torch import fx, nn

from hast_lightning.errors import ModelError
from hast_lightning.graph.tracing import trace


def drawn_afresh(network: nn.Module, seed: int) -> fx.GraphModule:
    """Return the graph of a network like this one that was never trained.

    Every layer draws its parameters as it does when PyTorch makes it, and BatchNorms begin with
    mean 0 and variance 1. What an architecture's own code draws instead cannot be seen in its
    layers. The random streams are left alone.

    Args:
        network: On the CPU; left as it is.
        seed: All that the new weights depend on, beside the architecture.

    Raises:
        ModelError: the network cannot be traced, or has a parameter that no layer draws.
    """
    graph_module = trace(copy.deepcopy(network))
    drawn: set[int] = set()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for layer in graph_module.modules():
            # BatchNorms without parameters have statistics to forget.
            if callable(draw := getattr(layer, "reset_parameters", None)):
                draw()
                drawn.update(map(id, layer.parameters(recurse=False)))
    for name, parameter in graph_module.named_parameters():
        if id(parameter) not in drawn:
            raise ModelError(
                f"the network's parameter {name} belongs to no layer that can draw it anew, as a "
                "student that is trained from scratch needs: its owner has no reset_parameters()"
            )
    graph_module.requires_grad_(True)
    return graph_module.eval()
