"""Files of networks that denoise take pictures and timesteps apart, as samplers hand them over.

In this package both are one tensor, with the timestep as the last channel.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from hast_lightning.core.diffusion import without_time
from hast_lightning.core.network import DIFFUSION, example_inputs
from hast_lightning.export.description import Description
from hast_lightning.graph.timesteps import is_timestep

PICTURES, TIMESTEPS = "pictures", "timesteps"
"""Names of the two inputs, in their order."""


def with_two_inputs(network: fx.GraphModule, description: Description) -> fx.GraphModule:
    """Return a network of (N, C, H, W) and (N,) in place of one of (N, C + 1, H, W).

    Args:
        network: Frozen; left as it is.
        description: Says whether it denoises; another network is given back as it is.
    """
    if description.modality != DIFFUSION:
        return network
    split = copy.deepcopy(network)
    graph = split.graph
    (joined,) = (node for node in graph.nodes if node.op == "placeholder")
    with graph.inserting_before(joined):
        apart = [graph.placeholder(name) for name in (PICTURES, TIMESTEPS)]
    for user in list(joined.users):
        user.replace_all_uses_with(apart[is_timestep(user)])
        graph.erase_node(user)
    graph.erase_node(joined)
    graph.lint()
    split.recompile()
    return split


def inputs_in_files(
    network: torch.nn.Module, shape: Sequence[int], count: int
) -> tuple[Tensor, ...]:
    """Return zeros of the shapes that a network takes: one input, or two.

    Args:
        network: A graph of either kind, or a module of one input.
        shape: (C, H, W) of one input; with the timestep as last channel where there are two.
        count: N.
    """
    inputs = example_inputs(count, shape)
    graph = network.graph if isinstance(network, fx.GraphModule) else None
    placeholders = [] if graph is None else [n for n in graph.nodes if n.op == "placeholder"]
    if [node.target for node in placeholders] != [PICTURES, TIMESTEPS]:
        return (inputs,)
    return tuple(each.clone() for each in without_time(inputs))


def with_one_input(
    network: Callable[..., Any], description: Description
) -> Callable[[Tensor], Any]:
    """Return a network of (N, C + 1, H, W) that calls one of two inputs, where it denoises."""
    if description.modality != DIFFUSION:
        return network
    return lambda inputs: network(*(each.contiguous() for each in without_time(inputs)))
