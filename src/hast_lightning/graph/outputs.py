"""What a network puts out beside plain logits: containers, maps of logits, several tensors.

Several tensors become one, (N, values), at the end of the graph: everything that handles logits
handles them. :func:`separate` gives the container back, as exports do.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from hast_lightning.core.outputs import Outputs, is_container, named_leaves
from hast_lightning.errors import ModelError

_MAPS = "hast_lightning.maps"
MAPS_DIMENSIONS = 4


def _tensors(output: Any) -> dict[str, Any]:
    """Return the tensors of an output, or the nodes that compute them, by name."""
    found = list(named_leaves(output)) if is_container(output) else []
    return {name: leaf for name, leaf in found if isinstance(leaf, Tensor | fx.Node)}


def only_tensor(output: Any, name: str) -> Any:
    """Return what a network puts out, out of a container that holds it beside no other tensor.

    Containers in the container are left out, as a network of tokens has its states in them.

    Args:
        output: Of the network.
        name: The network's, for the message.

    Raises:
        ModelError: there are several tensors.
    """
    tensors = {key: each for key, each in _tensors(output).items() if "." not in key}
    if len(tensors) > 1:
        raise ModelError(
            f"the network {name} puts out {len(tensors)} tensors ({', '.join(tensors)}), "
            "and one is what is quantized and compared: wrap the network in a module that returns "
            "one of them"
        )
    return next(iter(tensors.values()), output)


def joined(output: Any) -> Tensor:
    """Return the tensors of a container as one, (N, values): flattened, one behind the other.

    Args:
        output: Nested dictionaries, tuples and lists of tensors (N, ...).
    """
    return torch.cat([each.reshape(len(each), -1) for each in _tensors(output).values()], dim=1)


def as_one(output: Any, name: str, samples: int) -> Any:
    """Return the only tensor of what a network puts out, or several joined.

    Args:
        output: Of the network.
        name: The network's, for messages.
        samples: That it was given.

    Raises:
        ModelError: several tensors are not floats (samples, ...), or something else is beside them.
    """
    leaves = list(named_leaves(output)) if is_container(output) else []
    if sum(isinstance(leaf, Tensor) for _, leaf in leaves) < 2:
        return next(iter(_tensors(output).values()), output)
    _require_named(output, name)
    tensors = _tensors(output)
    for key, tensor in tensors.items():
        fits = tensor.is_floating_point() and tensor.dim() and len(tensor) == samples
        if not (fits and tensor.numel()):
            raise ModelError(
                f"the network {name} puts out {key} as {tensor.dtype} of shape "
                f"{tuple(tensor.shape)} for {samples} inputs; each of several outputs has to be "
                "floats (inputs, ...), as what a detector has before it selects boxes"
            )
    return joined(output)


def _require_named(output: Any, name: str) -> None:
    """Refuse what is no tensor, and keys that no file can hold."""
    leaves = list(named_leaves(output))
    for key, leaf in leaves:
        if not (leaf is None or isinstance(leaf, Tensor)):
            raise ModelError(
                f"the network {name} puts out several tensors, and beside them {key}, which is of "
                f"type {type(leaf).__name__}: return tensors alone"
            )
    if len(dict(leaves)) < len(leaves) or not _keys_are_text(output):
        raise ModelError(
            f"the network {name} puts out several tensors whose keys are no texts, or alike: name "
            "each by a text of its own"
        )


def _keys_are_text(output: Any) -> bool:
    if not is_container(output):
        return True
    keys, items = (output, output.values()) if isinstance(output, Mapping) else ((), output)
    return all(isinstance(key, str) for key in keys) and all(map(_keys_are_text, items))


def keep_only_tensor(network: fx.GraphModule, name: str) -> bool:
    """Have a graph put out its one tensor without the container around it.

    Returns:
        Whether there was one.

    Raises:
        ModelError: there are several tensors.
    """
    return _put_out(network, only_tensor(network.graph.output_node().args[0], name))


def join_outputs(network: fx.GraphModule) -> bool:
    """Have a graph put out one tensor: its only one, or several joined.

    Returns:
        Whether there was a container.
    """
    graph = network.graph
    output = graph.output_node()
    tensors = _tensors(output.args[0])
    if len(tensors) < 2:
        return _put_out(network, next(iter(tensors.values()), output.args[0]))
    with graph.inserting_before(output):
        return _put_out(network, graph.call_function(joined, (output.args[0],)))


def _put_out(network: fx.GraphModule, value: Any) -> bool:
    output = network.graph.output_node()
    if value is output.args[0]:
        return False
    output.args = (value,)
    network.recompile()
    return True


def puts_out_several(network: nn.Module) -> bool:
    """Return whether a network puts out several tensors, joined to one."""
    return isinstance(network, fx.GraphModule) and is_joint(network.graph.output_node().args[0])


def is_joint(node: Any) -> bool:
    """Return whether a node of a graph joins what the network puts out."""
    return isinstance(node, fx.Node) and node.target is joined


def separate(network: fx.GraphModule) -> fx.GraphModule:
    """Return a network, changed in place, that puts out its container of several tensors again."""
    joint = network.graph.output_node().args[0]
    if is_joint(joint):
        assert isinstance(joint, fx.Node)
        _put_out(network, joint.args[0])
        network.graph.erase_node(joint)
        network.recompile()
    return network


@torch.no_grad()
def outputs_of_graph(network: nn.Module, inputs: Tensor) -> Outputs | None:
    """Return names and shapes of several tensors that a network puts out; none of any other.

    Args:
        network: Left as it is.
        inputs: (N, ...), that it is run on.
    """
    if not puts_out_several(network):
        return None
    assert isinstance(network, fx.GraphModule)
    return Outputs.of(separate(copy.deepcopy(network))(inputs))


def mark_maps(network: fx.GraphModule) -> None:
    """Remember that a network puts out logits for each position, (N, classes, H, W)."""
    network.meta[_MAPS] = True


def puts_out_maps(network: nn.Module) -> bool:
    """Return whether a network puts out logits for each position, (N, classes, H, W)."""
    return isinstance(network, fx.GraphModule) and bool(network.meta.get(_MAPS))


def by_position(logits: Tensor) -> Tensor:
    """Return logits as (N, classes): each position of maps (N, classes, H, W) as a sample."""
    return logits if logits.dim() == 2 else logits.movedim(1, -1).flatten(0, -2)
