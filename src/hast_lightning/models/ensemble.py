"""Several pretrained networks as one teacher: frozen members whose logits are mixed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from hast_lightning.core.batch import Trace
from hast_lightning.core.ensemble import OWN, mixture
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ModelError
from hast_lightning.graph.outputs import puts_out_maps, puts_out_several
from hast_lightning.models.teacher import FrozenTeacher

SLASH = "/"
"""Between the name of a member and that of its node; no name of a node has one."""
KEPT = "weights"
"""What of an ensemble a run may change, so that checkpoints hold it."""


class EnsembleTeacher(FrozenTeacher):
    """Frozen networks that teach together: logits ``sum_k w_k z_k / sum_k w_k``.

    The first member is the network that the student is made of; its graph is that of the teacher,
    so terms that compare inner values pair it with the student. Weights start equal. Source:
    Co-Boosting (Dai et al., ICLR 2024).

    Args:
        pretrained: The first member, which knows the others (``teachers``).

    Raises:
        ModelError: a network cannot be traced.
    """

    weights: Tensor

    def __init__(self, pretrained: PretrainedNetwork) -> None:
        super().__init__(pretrained)
        # A list, since names such as "train" are taken in a dictionary of modules.
        self.others = nn.ModuleList(map(FrozenTeacher, pretrained.teachers.values()))
        count = 1 + len(self.others)
        self.register_buffer(KEPT, torch.full((count,), 1 / count))

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the members, in the order of the weights."""
        return (OWN, *self.pretrained.teachers)

    @property
    def members(self) -> Mapping[str, FrozenTeacher]:
        """Return the members behind the first, by name."""
        named = zip(self.pretrained.teachers, self.others, strict=True)
        return {name: each for name, each in named if isinstance(each, FrozenTeacher)}

    @property
    def graphs(self) -> Mapping[str, GraphModule]:
        """Return the graph of each member, by what stands before the names of its nodes."""
        others = {f"{name}{SLASH}": each.graph_module for name, each in self.members.items()}
        return {"": self.graph_module, **others}

    def compile_passes(self) -> None:
        """Have torch.compile translate every pass of every member, when it is first used."""
        super().compile_passes()
        for each in self.members.values():
            each.compile_passes()

    def answers(self, inputs: Tensor) -> Tensor:
        """Return the logits of each member, (K, N, classes)."""
        own = super().trace(inputs).logits
        return torch.stack([own, *(each(inputs) for each in self.members.values())])

    def trace(self, inputs: Tensor, nodes: Sequence[str] = (), *, unfolded: bool = False) -> Trace:
        """Return the mixed logits (N, classes) and the values of nodes of any member.

        Args:
            inputs: (N, ...).
            nodes: Names of the nodes whose values are wanted, as :attr:`graphs` has them.
            unfolded: As :meth:`FrozenTeacher.trace`.

        Raises:
            ModelError: there is no node of such a name.
        """
        wanted: defaultdict[str, list[str]] = defaultdict(list)
        for name in nodes:
            member, _, node = name.rpartition(SLASH)
            wanted[member].append(node)
        found = super().trace(inputs, wanted.pop("", ()), unfolded=unfolded)
        logits, values = [found.logits], dict(found.values)
        for name, each in self.members.items():
            traced = each.trace(inputs, wanted.pop(name, ()), unfolded=unfolded)
            logits.append(traced.logits)
            values |= {f"{name}{SLASH}{node}": value for node, value in traced.values.items()}
        if wanted:
            raise ModelError(f"no network teaches by the name {min(wanted)!r}")
        return Trace(mixture(torch.stack(logits), self.weights), {n: values[n] for n in nodes})


def teacher_of(pretrained: PretrainedNetwork) -> FrozenTeacher:
    """Return the teacher: the network itself, or an ensemble where others teach with it.

    Raises:
        ModelError: a network cannot be traced.
    """
    return EnsembleTeacher(pretrained) if pretrained.teachers else FrozenTeacher(pretrained)


def with_teachers(
    pretrained: PretrainedNetwork, others: Mapping[str, PretrainedNetwork]
) -> PretrainedNetwork:
    """Return the network that knows who teaches together with it.

    Raises:
        ModelError: they take other inputs than it does, or put out other classes.
    """
    own = pretrained.network
    if others and (puts_out_maps(own) or puts_out_several(own)):
        what = "maps" if puts_out_maps(own) else "several tensors"
        raise ModelError(
            f"teachers: the network {pretrained.name} puts out {what}, and only networks that give "
            "an image one answer can teach together"
        )
    for name, other in others.items():
        _require_alike(pretrained, other, f"teachers.{name}")
    return replace(pretrained, teachers={**pretrained.teachers, **others})


def _require_alike(own: PretrainedNetwork, other: PretrainedNetwork, key: str) -> None:
    """Refuse a member that one and the same batch cannot be shown to, or that answers otherwise."""
    both: dict[str, list[object]] = {
        "inputs of shape": [(*each.input_shape,) for each in (own, other)],
        "inputs of modality": [each.modality for each in (own, other)],
        "inputs normalized with mean": [_rounded(each.mean) for each in (own, other)],
        "inputs normalized with deviation": [_rounded(each.std) for each in (own, other)],
        "a front end of": [each.front_end for each in (own, other)],
        "a number of classes of": [each.num_classes for each in (own, other)],
    }
    if own.class_names is not None and other.class_names is not None:
        both["classes in the order"] = [list(each.class_names or ()) for each in (own, other)]
    for what, (wanted, found) in both.items():
        if found != wanted:
            raise ModelError(
                f"{key}: the network {other.name} has {what} {_short(found)}, and {own.name}, "
                f"which it is to teach together with, {_short(wanted)}"
            )
    if puts_out_maps(other.network) or puts_out_several(other.network):
        what = "maps" if puts_out_maps(other.network) else "several tensors"
        raise ModelError(f"{key}: the network {other.name} puts out {what}, {own.name} does not")


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(value, 6) for value in values)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
