"""What a graph computes anew at every call though no input has a part in it, as a tensor.

Frequencies of a timestep's embedding are the usual case: they are made by ``torch.arange``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from hast_lightning.graph.operations import values_of

PREFIX = "constant"


def fix_constants(graph_module: fx.GraphModule, inputs: Tensor) -> None:
    """Compute once, in place, what depends on the input's shape and device at most.

    What depends on the number of inputs stays as it is.

    Args:
        graph_module: In evaluation mode.
        inputs: (N, ...), two or more.
    """
    values = values_of(graph_module.graph)
    used = {each: None for value in values for each in value.all_input_nodes if each not in values}
    wanted = [node for node in used if node.op.startswith("call_")]
    found, of_fewer = (_Kept(graph_module, wanted).of(some) for some in (inputs, inputs[:1]))
    for number, node in enumerate(wanted):
        value, other = found[node], of_fewer[node]
        if not (isinstance(value, Tensor) and value.shape == other.shape):
            continue
        name = f"{PREFIX}_{number}"
        graph_module.register_buffer(name, value.detach().clone())
        with graph_module.graph.inserting_before(node):
            node.replace_all_uses_with(graph_module.graph.get_attr(name))
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()


class _Kept(fx.Interpreter):
    """Runs a graph and keeps the values of some nodes."""

    def __init__(self, graph_module: fx.GraphModule, nodes: list[fx.Node]) -> None:
        super().__init__(graph_module)
        self._nodes, self._kept = nodes, dict[fx.Node, Any]()

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and keep its value."""
        value = super().run_node(n)
        if n in self._nodes:
            self._kept[n] = value
        return value

    @torch.no_grad()
    def of(self, inputs: Tensor) -> dict[fx.Node, Any]:
        """Return the values for some inputs."""
        self.run(inputs)
        return self._kept
