"""Several networks that teach together: their logits are mixed by weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor, fx

from hast_lightning.core.network import Network

OWN = "model"
"""Name of the member that the student was made of."""


@runtime_checkable
class Ensemble(Network, Protocol):
    """A teacher of several members; as a network it has the nodes of all.

    Nodes of the member that the student was made of have their own names, so that terms pair them
    with the student's. Those of another member have its name and a slash before theirs.
    """

    weights: Tensor
    """(K,) float32, each in [0, 1] and not all 0."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the members, in the order of the weights; the first is ``model``."""
        ...

    @property
    def graphs(self) -> Mapping[str, fx.GraphModule]:
        """Return the graph of each member, by what stands before the names of its nodes."""
        ...

    def answers(self, inputs: Tensor) -> Tensor:
        """Return the logits of each member, (K, N, classes)."""
        ...


def graphs_of(network: Network) -> Mapping[str, fx.GraphModule]:
    """Return the graphs of a network's members, by what stands before the names of nodes."""
    return network.graphs if isinstance(network, Ensemble) else {"": network.graph_module}


def mixture(answers: Tensor, weights: Tensor) -> Tensor:
    """Return ``sum_k w_k z_k / sum_k w_k``: the logits of an ensemble, (N, classes).

    Source: Co-Boosting (Dai et al., ICLR 2024).

    Args:
        answers: The logits z of each member, (K, N, classes).
        weights: w, (K,), whose sum is positive; only their ratios count.
    """
    shares = (weights / weights.sum()).view(-1, *(1,) * (answers.dim() - 1))
    mixed: Tensor = (shares * answers).sum(dim=0)
    return mixed.to(answers.dtype)
