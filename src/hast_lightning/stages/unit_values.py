"""What the units of a network take in and put out, kept on the host while it is rebuilt."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx

from hast_lightning.graph.shapes import SHAPE, note_shapes
from hast_lightning.graph.units import Unit, extract
from hast_lightning.stages.room import Room

CHUNK = 128
"""Samples that go through a unit at once."""

Values = tuple[Tensor, ...]


class Cached(NamedTuple):
    """What one unit is rebuilt from, on the host.

    Attributes:
        floating: What the teacher's unit takes in, (N, ...) each.
        quantized: What the student's unit takes in, behind all units before it, (N, ...) each.
        target: What the teacher's unit puts out, (N, ...).
    """

    floating: Values
    quantized: Values
    target: Tensor


class UnitValues:
    """Goes through the units of both networks, and keeps what later units still need.

    Args:
        units: In order of execution.
        teacher: The float network.
        student: Units before the one that is asked for are rebuilt.
        placed: Returns values where the networks are.
        inputs: Returns the samples (N, ...), always the same, on the host.
        room: Where values are kept.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        teacher: fx.GraphModule,
        student: fx.GraphModule,
        placed: Callable[[Values], Values],
        inputs: Callable[[], Tensor],
        room: Room,
    ) -> None:
        self.units, self.teacher, self.student = units, teacher, student
        self._placed, self._inputs, self._room = placed, inputs, room
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}
        self._at = -1
        self._cached: Cached | None = None

    def of(self, number: int) -> Cached:
        """Return what a unit is rebuilt from.

        Where it is not the one behind the last that was asked for, as after a resume, all units
        before it are gone through again.
        """
        if self._cached is not None and self._at == number - 1:
            rebuilt = extract(self.student, self.units[number - 1])
            output = self._through(rebuilt, self._cached.quantized)
            self._keep(number - 1, self._cached.target, output)
            self._cached = None  # makes room for the next
        else:
            inputs = self._inputs()
            self._kept = {self.units[0].source: (inputs, inputs)}
            for i, unit in enumerate(self.units[:number]):
                floating, quantized = self._taken_in(unit)
                of_teacher = self._through(extract(self.teacher, unit), floating)
                self._keep(i, of_teacher, self._through(extract(self.student, unit), quantized))
        unit = self.units[number]
        floating, quantized = self._taken_in(unit)
        target = self._through(extract(self.teacher, unit), floating)
        self._at, self._cached = number, Cached(floating, quantized, target)
        return self._cached

    def _taken_in(self, unit: Unit) -> tuple[Values, Values]:
        """Return what the teacher's unit takes in, and what the student's does."""
        floating, quantized = zip(*(self._kept[name] for name in unit.sources), strict=True)
        return floating, quantized

    def _keep(self, number: int, floating: Tensor, quantized: Tensor) -> None:
        """Keep what a unit of both networks puts out, and of others what is still needed."""
        self._kept[self.units[number].target] = (floating, quantized)
        needed = {name for unit in self.units[number + 1 :] for name in unit.sources}
        self._kept = {name: values for name, values in self._kept.items() if name in needed}

    @torch.no_grad()
    def _through(self, unit: fx.GraphModule, inputs: Values) -> Tensor:
        """Return what a unit puts out, on the host."""
        parts = zip(*(torch.split(each, CHUNK) for each in inputs), strict=True)
        outputs = (unit(*self._placed(part)).cpu() for part in parts)
        return self._room.gathered(len(inputs[0]), outputs)


def largest_unit(
    teacher: fx.GraphModule, units: Sequence[Unit], example: Tensor
) -> tuple[Unit, int]:
    """Return the unit at which most is kept, and the bytes of it for one sample.

    What both networks take in and put out there is kept, and what later units take in of units
    before it, in float32.

    Args:
        teacher: The float network.
        units: Of it.
        example: (1, ...).
    """
    note_shapes(teacher, example)
    nodes = {node.name: node for node in teacher.graph.nodes}

    def numbers(number: int) -> int:
        before = {units[0].source, *(unit.target for unit in units[:number])}
        later = {name for unit in units[number:] for name in unit.sources}
        names = (before & later) | {*units[number].sources, units[number].target}
        return sum(math.prod(nodes[name].meta[SHAPE][1:]) for name in names)

    number = max(range(len(units)), key=numbers)
    return units[number], 2 * 4 * numbers(number)
