"""What a quantizer is asked to do, validated where it is constructed."""

from __future__ import annotations

from dataclasses import dataclass

from hast_lightning.config import GRADIENTS, MAX_BITS, MIN_BITS, QuantizerConfig
from hast_lightning.errors import ConfigurationError


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

    Raises:
        ConfigurationError: a value is out of range.
    """

    weight_bits: int
    activation_bits: int
    gradient: str = "pass_through"
    momentum: float = 0.9
    include_zero: bool = False

    def __post_init__(self) -> None:
        for field in ("weight_bits", "activation_bits"):
            bits = getattr(self, field)
            if not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
                raise ConfigurationError(f"{field}={bits} must be {MIN_BITS} to {MAX_BITS}")
        if self.gradient not in GRADIENTS:
            raise ConfigurationError(
                f"gradient={self.gradient!r} is not one of: {', '.join(GRADIENTS)}"
            )
        if not 0 <= self.momentum < 1:
            raise ConfigurationError(f"momentum={self.momentum} must be at least 0 and below 1")

    @classmethod
    def from_config(cls, config: QuantizerConfig) -> QuantizationSpec:
        """The specification that the ``quantizer`` group describes."""
        return cls(
            weight_bits=config.weight_bits,
            activation_bits=config.activation_bits,
            gradient=config.gradient,
            momentum=config.momentum,
            include_zero=config.include_zero,
        )
