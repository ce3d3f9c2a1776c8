"""The three independent axes of a quantizer: ranges, rounding, placement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

from torch import Tensor, fx

from hast_lightning.core.part import Part
from hast_lightning.quantization.fake_quant import ActivationQuantizer, WeightQuantizer
from hast_lightning.quantization.ranges import Grid

Quantizer = TypeVar("Quantizer", bound=ActivationQuantizer)


class QuantizerSettings(Protocol):
    """Settings that the axes have in common.

    Attributes:
        gradient: ``pass_through`` or ``clipped`` straight-through gradients.
        momentum: Of the moving average of activation ranges.
        include_zero: Extend every range to contain zero.
        placement: Which values are stored, and in which form.
        group_size: Weights of a linear layer's channel that share a range; none: all.
    """

    gradient: str
    momentum: float
    include_zero: bool
    placement: Placement
    group_size: int | None


@dataclass(eq=False, repr=False)
class Ranges(Part, ABC):
    """Base class: finds or learns the ranges of weights and activations."""

    @abstractmethod
    def find(self, rows: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the lower and upper ends, (rows, 1) each, of rows of values (rows, n)."""

    def weight_quantizer(
        self, bits: int, weight: Tensor, settings: QuantizerSettings
    ) -> WeightQuantizer:
        """Return a quantizer of a layer's ``weight``, (out_channels, ...)."""
        return WeightQuantizer(
            bits,
            settings.include_zero,
            symmetric=settings.placement.symmetric_weights,
            find=self.find,
            gradient=settings.gradient,
            group_size=settings.group_size if weight.dim() == 2 else None,
        )

    def activation_quantizer(self, bits: int, settings: QuantizerSettings) -> ActivationQuantizer:
        """Return a quantizer of one activation tensor."""
        return self._as_set(ActivationQuantizer, bits, settings)

    def _as_set(self, kind: type[Quantizer], bits: int, settings: QuantizerSettings) -> Quantizer:
        return kind(
            bits,
            gradient=settings.gradient,
            momentum=settings.momentum,
            include_zero=settings.include_zero,
            find=self.find,
        )


@dataclass(eq=False, repr=False)
class Rounding(Part, ABC):
    """Base class: rounds weights to the integers of their range."""

    @abstractmethod
    def weight_quantizer(
        self, ranges: Ranges, bits: int, weight: Tensor, settings: QuantizerSettings
    ) -> WeightQuantizer:
        """Return a quantizer of a layer's ``weight``, (out_channels, ...)."""


@dataclass(eq=False, repr=False)
class Placement(Part, ABC):
    """Base class: chooses the values of a network that are quantized.

    Attributes:
        symmetric_weights: Weights have signed integers with zero in the middle.
        needs_zero: Every range has to contain zero.
    """

    symmetric_weights: ClassVar[bool] = False
    needs_zero: ClassVar[bool] = False

    @abstractmethod
    def values(self, student: fx.GraphModule) -> list[fx.Node]:
        """Return the nodes whose values are quantized, in order of execution."""

    def takes(self, user: fx.Node, node: fx.Node, student: fx.GraphModule) -> bool:
        """Return whether ``user`` takes in the rounded value of ``node``; usually all do."""
        return True

    def activation_quantizer(
        self,
        node: fx.Node,
        student: fx.GraphModule,
        ranges: Ranges,
        bits: int,
        settings: QuantizerSettings,
    ) -> ActivationQuantizer:
        """Return the quantizer of a node's value; usually that of the ranges."""
        return ranges.activation_quantizer(bits, settings)
