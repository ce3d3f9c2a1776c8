"""Passes of a network that give the values of its nodes beside its output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, fx

from hast_lightning.core.batch import Trace
from hast_lightning.graph.tracing import expose

if TYPE_CHECKING:
    from hast_lightning.core.network import PretrainedNetwork
    from hast_lightning.core.outputs import Outputs


class Passes:
    """Passes through one graph module, each made when it is first asked for.

    Args:
        graph_module: Its layers are shared with all passes.
        outputs: Several outputs that it has joined; none: there is one.
    """

    def __init__(self, graph_module: fx.GraphModule, outputs: Outputs | None = None) -> None:
        self.graph_module = graph_module
        self._outputs = outputs
        self.compiled = False
        self._exposed: dict[tuple[str, ...], fx.GraphModule] = {}

    def forget(self) -> None:
        """Make all passes anew: tensors of the graph's root move to a device by being replaced."""
        self._exposed.clear()

    def trace(self, inputs: Tensor, nodes: Sequence[str] = ()) -> Trace:
        """Run the network.

        Args:
            inputs: (N, ...).
            nodes: Names of the nodes whose values are wanted.

        Raises:
            ModelError: there is no node of such a name.
        """
        names = tuple(nodes)
        if names not in self._exposed:
            self._exposed[names] = expose(self.graph_module, names)
            if self.compiled:
                self._exposed[names].compile()
        logits, values = self._exposed[names](inputs)
        return Trace(logits, dict(zip(names, values, strict=True)), self._outputs)


class Learner:
    """The student as a network whose nodes can be read; it holds no parameters of its own.

    Args:
        student: The converted network.
        pretrained: What it was made of.
    """

    def __init__(self, student: fx.GraphModule, pretrained: PretrainedNetwork) -> None:
        self.graph_module, self.pretrained = student, pretrained
        self.passes = Passes(student, pretrained.outputs)

    def trace(self, inputs: Tensor, nodes: Sequence[str] = (), *, unfolded: bool = False) -> Trace:
        """Run the student, whose BatchNorms are never folded."""
        return self.passes.trace(inputs, nodes)
