"""The ``quantizer`` group: bit widths, the three axes, and what they have in common."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import MISSING

from hast_lightning.core.bits import FLOAT_BITS, Widths
from hast_lightning.core.checks import require_choice, require_range
from hast_lightning.errors import ConfigurationError
from hast_lightning.quantization.axes import Placement, Ranges, Rounding
from hast_lightning.quantization.nearest import Nearest
from hast_lightning.quantization.placement import Simulated
from hast_lightning.quantization.search import MinMax

MIN_BITS, MAX_BITS = 2, 8
BINARY = 1
"""Bits that weights alone may have: a sign each (``quantization/binary.py``)."""
LEAST = {"weight_bits": BINARY}
GRADIENTS = ("pass_through", "clipped")


@dataclass
class LayerBits:
    """Bits of the layers whose name matches a pattern; what is not set stays as it is."""

    layers: str = MISSING
    """Shell-style pattern of the names of convolutions and linear layers."""
    weight_bits: int | None = None
    """Bits of the layers' weights; 32 leaves them in floating point."""
    activation_bits: int | None = None
    """Bits of what the layers take in; 32 leaves it in floating point."""
    bits: int | None = None
    """Bits of both that are not set, where what the layers take in is quantized."""

    def __post_init__(self) -> None:
        if self.weight_bits is None and self.activation_bits is None and self.bits is None:
            raise ConfigurationError(
                f"quantizer.overrides: {self.layers!r} sets neither weight_bits nor activation_bits"
            )
        for name in ("weight_bits", "activation_bits", "bits"):
            bits = getattr(self, name)
            if bits is not None:
                key = f"quantizer.overrides: {self.layers!r}: {name}"
                _require_bits(key, bits, LEAST.get(name, MIN_BITS))


@dataclass
class QuantizerConfig:
    """Fake quantization of the student."""

    bits: int | None = None
    """Bits of weights and activations alike, in place of the two below. 32 quantizes nothing: the
    student is then a new network in floating point, whose weights are drawn afresh."""
    weight_bits: int | None = 3
    """Bits of the weights of convolutions and linear layers, 2 to 8; 32 leaves them in floating
    point, and so does null, which is 32 from then on. 1 is a sign and one magnitude per channel,
    an experiment: expect little of it without long training."""
    activation_bits: int | None = 3
    """Bits of the activations; 32 or null leaves them in floating point, and no range is found."""
    ranges: Ranges = MISSING
    """How ranges are found or learned; ``minmax`` in Python."""
    rounding: Rounding = MISSING
    """How weights are rounded; to ``nearest`` in Python."""
    placement: Placement = MISSING
    """Which values are quantized; ``simulated`` in Python."""
    gradient: str = "pass_through"
    """Straight-through estimator: ``pass_through`` (the paper's) or ``clipped`` to the range."""
    momentum: float = 0.9
    """Momentum of the exponential moving average of activation ranges while calibrating."""
    include_zero: bool = False
    """Extend every range to contain zero, as integer engines require."""
    group_size: int | None = None
    """Neighboring weights of a linear layer's channel that share a range, such as 32; null: all of
    a channel. Convolutions have one range a channel."""
    per_tensor: bool = False
    """One range for all weights of a layer, with the BatchNorm behind them folded in, as engines
    need that have one scale a layer; false: a range for each output channel."""
    equalize: bool = False
    """Scale channels between neighbouring layers, which leaves what the network computes as it is:
    with a range a channel so that what depthwise layers take in is as wide in all channels; with
    one a layer so that channels are as wide in both (cross-layer equalization of DFQ)."""
    first_and_last_8bit: bool = False
    """Weights and inputs of the first and of the last layer at 8 bits, where others are
    quantized."""
    overrides: list[LayerBits] = field(default_factory=list)
    """Bits of single layers; of several entries that match a layer the last one counts, and each
    counts more than ``first_and_last_8bit``."""

    def __post_init__(self) -> None:
        axes = (
            ("ranges", Ranges, MinMax),
            ("rounding", Rounding, Nearest),
            ("placement", Placement, Simulated),
        )
        for name, base, usual in axes:
            value = getattr(self, name)
            if value == MISSING:
                setattr(self, name, usual())
            elif not isinstance(value, base):
                raise ConfigurationError(
                    f"quantizer.{name}={value!r} is no {base.__name__} of "
                    "hast_lightning.quantization"
                )
        if self.bits is not None:
            _require_bits("quantizer.bits", self.bits, MIN_BITS)
            self.weight_bits = self.activation_bits = self.bits
        self._check_widths()
        self._check_groups()
        self._check_shared()
        require_choice("quantizer.gradient", self.gradient, GRADIENTS)
        require_range("quantizer.momentum", self.momentum, 0, 0.9999)
        if self.placement.needs_zero and not self.include_zero:
            raise ConfigurationError(
                "quantizer.include_zero=false: the integer engines that "
                f"placement={self.placement.kind} is for pad with zeros, which every range must "
                "contain"
            )

    def _check_groups(self) -> None:
        """Refuse what learns one scale a channel."""
        if self.group_size is None:
            return
        require_range("quantizer.group_size", self.group_size, 2)
        learned = type(self.ranges).weight_quantizer is not Ranges.weight_quantizer
        if learned or self.rounding.kind == "adaptive":
            axis = "ranges" if learned else "rounding"
            raise ConfigurationError(
                f"quantizer.group_size={self.group_size} with {axis}@quantizer.{axis}="
                f"{getattr(self, axis).kind}, which learns one scale a channel: leave one of "
                "them out"
            )
        if BINARY in self._weight_widths:
            raise ConfigurationError(
                f"quantizer.group_size={self.group_size} with weight_bits=1, which has one "
                "magnitude a channel: leave one of them out"
            )

    def _check_shared(self) -> None:
        """Refuse what has more than one scale a layer, or fixes it beside the BatchNorm."""
        if not self.per_tensor:
            return
        against = {
            "a group_size": self.group_size is not None,
            "weight_bits=1": BINARY in self._weight_widths,
            f"rounding={self.rounding.kind}": self.rounding.kind != "nearest",
        }
        found = next((what for what, given in against.items() if given), None)
        if found is not None:
            raise ConfigurationError(
                f"quantizer.per_tensor=true with {found}, which has scales of its own: leave one "
                "of them out"
            )

    @property
    def _weight_widths(self) -> list[int | None]:
        """Return the bits of weights, of all layers and of single ones."""
        return [self.weight_bits, *(entry.weight_bits for entry in self.overrides)]

    def _check_widths(self) -> None:
        """Write floating point as 32, and refuse other widths than there are."""
        for name in ("weight_bits", "activation_bits"):
            if getattr(self, name) is None:
                setattr(self, name, FLOAT_BITS)
            _require_bits(f"quantizer.{name}", getattr(self, name), LEAST.get(name, MIN_BITS))
        if BINARY in self._weight_widths and self.rounding.kind != "nearest":
            raise ConfigurationError(
                f"quantizer.weight_bits=1 with rounding={self.rounding.kind}: a sign is not "
                "rounded; choose rounding@quantizer.rounding=nearest"
            )

    @property
    def widths(self) -> Widths:
        """Return the bits of weights and of activations."""
        assert self.weight_bits is not None
        assert self.activation_bits is not None
        return Widths(self.weight_bits, self.activation_bits)

    @property
    def floating(self) -> bool:
        """Return whether nothing is quantized, so that the student is a new network."""
        return set(self.widths) == {FLOAT_BITS} and not any(map(_quantizes, self.overrides))

    def unused(self) -> Collection[str]:
        """Return all settings where nothing is quantized."""
        return [each.name for each in fields(self)] if self.floating else ()

    @property
    def mixed(self) -> bool:
        """Return whether single layers may have other bits."""
        others = (self.first_and_last_8bit and self.widths.unlike_8) or bool(self.overrides)
        return others and not self.floating

    @property
    def name(self) -> str:
        """Return what reports call the quantizer: its ranges, and what differs from the papers."""
        if self.floating:
            return "nothing quantized"
        others = [
            axis.kind
            for axis, usual in ((self.rounding, "nearest"), (self.placement, "simulated"))
            if axis.kind != usual
        ]
        return " ".join([self.ranges.kind, *others, *["per tensor"][: self.per_tensor]])


def _require_bits(key: str, bits: int, least: int) -> None:
    """Refuse what is no width; in Python it may be of any type."""
    if type(bits) is not int:
        raise ConfigurationError(f"{key}={bits!r} must be an integer")
    if bits == FLOAT_BITS:
        return
    try:
        require_range(key, bits, least, MAX_BITS)
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}, or {FLOAT_BITS} for floating point") from None


def _quantizes(override: LayerBits) -> bool:
    """Return whether an override asks for integers anywhere."""
    return bool(
        {override.weight_bits, override.activation_bits, override.bits} - {None, FLOAT_BITS}
    )


def refuse_two_ways_of_bits(overrides: Sequence[str]) -> None:
    """Refuse ``quantizer.bits`` beside another number for weights or activations.

    A recipe's numbers give way to ``quantizer.bits`` in silence, as they should; what the same
    person asks for in the same breath does not.

    Args:
        overrides: What was asked for, in the words of the command line.

    Raises:
        ConfigurationError: two of them contradict each other.
    """
    wanted = OverridesParser.create().parse_overrides(list(overrides))
    plain = [override for override in wanted if not override.is_sweep_override()]
    values = {override.key_or_group: override.value() for override in plain}
    bits = values.get("quantizer.bits")
    for name in ("quantizer.weight_bits", "quantizer.activation_bits"):
        if bits is not None and values.get(name, bits) != bits:
            raise ConfigurationError(
                f"quantizer.bits={bits} {name}={values[name]}: bits is both; leave one of them out"
            )
