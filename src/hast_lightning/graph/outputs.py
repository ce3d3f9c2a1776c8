"""What a network puts out beside plain logits: containers of one tensor, and maps of logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from hast_lightning.errors import ModelError

_MAPS = "hast_lightning.maps"
MAPS_DIMENSIONS = 4


def only_tensor(output: Any, name: str) -> Any:
    """Return what a network puts out, out of a dictionary, list or tuple that holds it alone.

    Args:
        output: Of the network.
        name: The network's, for the message.

    Raises:
        ModelError: there are several tensors.
    """
    tensors = {key: value for key, value in _items(output) if isinstance(value, Tensor | fx.Node)}
    if len(tensors) > 1:
        raise ModelError(
            f"the network {name} puts out {len(tensors)} tensors ({', '.join(map(str, tensors))}), "
            "and one is what is quantized and compared: wrap the network in a module that returns "
            "one of them"
        )
    return next(iter(tensors.values()), output)


def _items(output: Any) -> list[tuple[Any, Any]]:
    if isinstance(output, Mapping):
        return list(output.items())
    # Named tuples and dataclasses of libraries are tuples and mappings, too.
    return list(enumerate(output)) if isinstance(output, tuple | list) else []


def keep_only_tensor(network: fx.GraphModule, name: str) -> bool:
    """Have a graph put out its one tensor without the container around it.

    Returns:
        Whether there was one.
    """
    output = network.graph.output_node()
    kept = only_tensor(output.args[0], name)
    if kept is output.args[0]:
        return False
    output.args = (kept,)
    network.recompile()
    return True


def mark_maps(network: fx.GraphModule) -> None:
    """Remember that a network puts out logits for each position, (N, classes, H, W)."""
    network.meta[_MAPS] = True


def puts_out_maps(network: nn.Module) -> bool:
    """Return whether a network puts out logits for each position, (N, classes, H, W)."""
    return isinstance(network, fx.GraphModule) and bool(network.meta.get(_MAPS))


def by_position(logits: Tensor) -> Tensor:
    """Return logits as (N, classes): each position of maps (N, classes, H, W) as a sample."""
    return logits if logits.dim() == 2 else logits.movedim(1, -1).flatten(0, -2)
