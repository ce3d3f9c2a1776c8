"""The ``quantizer`` group."""

from __future__ import annotations

from dataclasses import dataclass

from hast_lightning.config.checks import require_choice, require_range

MIN_BITS, MAX_BITS = 2, 8
QUANTIZERS = ("minmax",)
GRADIENTS = ("pass_through", "clipped")


@dataclass
class QuantizerConfig:
    """Fake quantization of the student."""

    name: str = "minmax"
    weight_bits: int = 3
    activation_bits: int = 3
    gradient: str = "pass_through"
    """Straight-through estimator: ``pass_through`` (the paper's) or ``clipped`` to the range."""
    momentum: float = 0.9
    """Momentum of the exponential moving average of activation ranges while calibrating."""
    include_zero: bool = False
    """Extend every range to contain zero, as integer engines require."""

    def __post_init__(self) -> None:
        require_choice("quantizer.name", self.name, QUANTIZERS)
        require_range("quantizer.weight_bits", self.weight_bits, MIN_BITS, MAX_BITS)
        require_range("quantizer.activation_bits", self.activation_bits, MIN_BITS, MAX_BITS)
        require_choice("quantizer.gradient", self.gradient, GRADIENTS)
        require_range("quantizer.momentum", self.momentum, 0, 0.9999)
