"""What a quantizer is asked to do, validated where it is constructed."""

from __future__ import annotations

from dataclasses import dataclass

from hast_lightning.config import GRADIENTS, MAX_BITS, MIN_BITS, RANGES, QuantizerConfig
from hast_lightning.errors import ConfigurationError


@dataclass(frozen=True)
class LayerBits:
    """Bits of some layers, where they differ from the others'.

    Attributes:
        layers: Shell-style pattern of the dotted names of convolutions and linear layers.
        weight_bits: Bits of their weights, 2 to 8; none: as without this entry.
        activation_bits: Bits of what they take in; none: as without this entry.

    Raises:
        ConfigurationError: a value is out of range, or neither is given.
    """

    layers: str
    weight_bits: int | None = None
    activation_bits: int | None = None

    def __post_init__(self) -> None:
        bits = {"weight_bits": self.weight_bits, "activation_bits": self.activation_bits}
        chosen = {name: value for name, value in bits.items() if value is not None}
        if not chosen:
            raise ConfigurationError(
                f"overrides: {self.layers!r} sets neither weight_bits nor activation_bits"
            )
        for name, value in chosen.items():
            _require_bits(f"overrides: {self.layers!r}: {name}", value)


@dataclass(frozen=True)
class QuantizationSpec:
    """Bit widths and options of one network's fake quantization.

    Attributes:
        weight_bits: Bits of every convolution's and linear layer's weights, 2 to 8.
        activation_bits: Bits of every activation, 2 to 8.
        gradient: ``pass_through`` leaves the gradient unchanged, out of range too (the
            straight-through estimator of the released ZSQ codes); ``clipped`` zeroes it
            outside the range.
        momentum: Momentum of the moving average of activation ranges.
        include_zero: Extend every range to contain zero.
        ranges: How ranges are found: ``minmax``, ``mse`` (least squared error), ``percentile``,
            or ``lsq`` (learned step sizes).
        percentile: Where ``percentile`` ends a range, in percent of the values; the other end
            is at its mirror image, ``100 - percentile``.
        deployable: The form that integer engines run: symmetric weights, and everything
            quantized that such an engine stores (:mod:`~hast_lightning.quantization.placement`).
        first_and_last_8bit: Weights and inputs of the first and of the last layer at 8 bits.
        overrides: Bits of single layers; of several entries that match a layer the last counts,
            and each counts more than ``first_and_last_8bit``.

    Raises:
        ConfigurationError: a value is out of range.
    """

    weight_bits: int
    activation_bits: int
    gradient: str = "pass_through"
    momentum: float = 0.9
    include_zero: bool = False
    ranges: str = "minmax"
    percentile: float = 99.9
    deployable: bool = False
    first_and_last_8bit: bool = False
    overrides: tuple[LayerBits, ...] = ()

    def __post_init__(self) -> None:
        _require_bits("weight_bits", self.weight_bits)
        _require_bits("activation_bits", self.activation_bits)
        if self.gradient not in GRADIENTS:
            raise ConfigurationError(
                f"gradient={self.gradient!r} is not one of: {', '.join(GRADIENTS)}"
            )
        if not 0 <= self.momentum < 1:
            raise ConfigurationError(f"momentum={self.momentum} must be at least 0 and below 1")
        if self.ranges not in RANGES:
            raise ConfigurationError(f"ranges={self.ranges!r} is not one of: {', '.join(RANGES)}")
        if not 50 < self.percentile <= 100:
            raise ConfigurationError(
                f"percentile={self.percentile} must be greater than 50 and at most 100"
            )
        if self.deployable and not self.include_zero:
            raise ConfigurationError(
                "deployable=True needs include_zero=True: integer engines pad with zeros"
            )

    @classmethod
    def from_config(cls, config: QuantizerConfig) -> QuantizationSpec:
        """The specification that the ``quantizer`` group describes."""
        return cls(
            weight_bits=config.weight_bits,
            activation_bits=config.activation_bits,
            gradient=config.gradient,
            momentum=config.momentum,
            include_zero=config.include_zero,
            ranges=config.ranges or config.name,
            percentile=config.percentile,
            deployable=config.name == "deploy",
            first_and_last_8bit=config.first_and_last_8bit,
            overrides=tuple(
                LayerBits(entry.layers, entry.weight_bits, entry.activation_bits)
                for entry in config.overrides
            ),
        )


def _require_bits(name: str, bits: object) -> None:
    if not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        raise ConfigurationError(f"{name}={bits} must be {MIN_BITS} to {MAX_BITS}")
