"""The full-precision teacher: frozen, always in evaluation mode."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from hast_lightning.core.batch import Trace
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.graph.depthwise import keep_depthwise_in_float32
from hast_lightning.graph.network import Passes
from hast_lightning.graph.operations import BATCH_NORMS, IDENTITIES, layer_of
from hast_lightning.graph.tracing import batch_norm_inputs, fold_batch_norms, trace


def batch_norms_are_new(graph_module: GraphModule) -> bool:
    """Return whether no BatchNorm has ever met an image: mean 0, variance 1 everywhere.

    Such a network was never trained, or its weights were not loaded; images that are matched to
    these statistics say nothing about its data.
    """
    layers: list[Any] = [
        graph_module.get_submodule(name) for _, name in batch_norm_inputs(graph_module)
    ]
    return bool(layers) and all(
        not layer.running_mean.any() and bool((layer.running_var == 1).all()) for layer in layers
    )


def _inside(graph_module: GraphModule, folded: GraphModule) -> set[str]:
    """Return the names of nodes whose values folding changes: what folded BatchNorms take in."""
    found = set()
    for node in graph_module.graph.nodes:
        known = isinstance(layer_of(node, graph_module), BATCH_NORMS)
        passes = known and not isinstance(layer_of(node, folded), BATCH_NORMS)
        while passes:
            node = node.all_input_nodes[0]
            found.add(node.name)
            passes = isinstance(layer_of(node, graph_module), IDENTITIES)
    return found


class FrozenTeacher(nn.Module):
    """A copy of a pretrained network that never changes.

    Its parameters take no gradient and :meth:`train` leaves it in evaluation mode; gradients
    still flow through it to the inputs.

    Args:
        pretrained: Left as it is.

    Raises:
        ModelError: the network cannot be traced.
    """

    def __init__(self, pretrained: PretrainedNetwork) -> None:
        super().__init__()
        self.pretrained = pretrained
        network = copy.deepcopy(pretrained.network).eval().requires_grad_(False)
        self.graph_module = trace(network)
        self.folded = fold_batch_norms(self.graph_module)
        for each in (self.graph_module, self.folded):
            keep_depthwise_in_float32(each)
        self._inside = _inside(self.graph_module, self.folded)
        graphs = {True: self.graph_module, False: self.folded}
        self._passes = {key: Passes(g, pretrained.outputs) for key, g in graphs.items()}
        self.eval()

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stay in evaluation mode, whatever ``mode`` asks for."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenTeacher:
        for passes in self._passes.values():
            passes.forget()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def compile_passes(self) -> None:
        """Have torch.compile translate every pass, when it is first used."""
        for passes in self._passes.values():
            passes.compiled = True

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs (N, ...) to logits (N, classes), or to several outputs joined, (N, values)."""
        return self.trace(inputs).logits

    def trace(self, inputs: Tensor, nodes: Sequence[str] = (), *, unfolded: bool = False) -> Trace:
        """Return logits (N, classes) and the values of nodes.

        Args:
            inputs: (N, ...).
            nodes: Names of the nodes whose values are wanted.
            unfolded: Keep BatchNorms apart from convolutions, so that what they take in is the
                value of a node; done in any case where such a value is wanted.
        """
        apart = unfolded or not self._inside.isdisjoint(nodes)
        return self._passes[apart].trace(inputs, nodes)
