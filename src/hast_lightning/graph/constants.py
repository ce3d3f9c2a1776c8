"""What a graph computes anew at every call though no input has a part in it, as a tensor.

Frequencies of a timestep's embedding are the usual case: they are made by ``torch.arange``.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from hast_lightning.graph.in_place import is_overwritten, overwrites
from hast_lightning.graph.operations import values_of
from hast_lightning.graph.tracing import expose

PREFIX = "constant"


@torch.no_grad()
def fix_constants(graph_module: fx.GraphModule, inputs: Tensor) -> None:
    """Compute once, in place, what depends on the input's shape and device at most.

    What depends on the number of inputs stays as it is, and what is overwritten later.

    Args:
        graph_module: In evaluation mode.
        inputs: (N, ...), two or more.
    """
    values = values_of(graph_module.graph)
    used = {each: None for value in values for each in value.all_input_nodes if each not in values}
    made = [node for node in used if node.op.startswith("call_")]
    wanted = [node for node in made if not is_overwritten(node, graph_module)]
    exposed = expose(graph_module, [node.name for node in wanted])
    found, of_fewer = (exposed(some)[1] for some in (inputs, inputs[:1]))
    for number, (node, value, other) in enumerate(zip(wanted, found, of_fewer, strict=True)):
        if not (isinstance(value, Tensor) and value.shape == other.shape):
            continue
        name = f"{PREFIX}_{number}"
        graph_module.register_buffer(name, value.detach().clone())
        with graph_module.graph.inserting_before(node):
            node.replace_all_uses_with(graph_module.graph.get_attr(name))
    # What overwrites a value counts, though nothing may take in what it puts out.
    graph_module.graph.eliminate_dead_code(
        lambda node: node.is_impure() or overwrites(node, graph_module)
    )
    graph_module.recompile()
