"""Layers of the student: fake-quantized weights and activations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from hast_lightning.core.bits import FLOAT_BITS
from hast_lightning.graph.arguments import arguments_of
from hast_lightning.graph.weights import output_first
from hast_lightning.quantization.forwards import (
    ConvolutionForward,
    LinearForward,
    MadeWeight,
    TransposedForward,
)
from hast_lightning.quantization.per_tensor import FoldedFactors
from hast_lightning.quantization.ranges import (
    AffineParameters,
    Grid,
    MovingRange,
    RangeFinder,
    channel_ranges,
    extremes,
    group_ranges,
    spread_groups,
)
from hast_lightning.quantization.rounding import (
    fake_quantize,
    is_inside,
    quantize,
    quantize_dequantize,
    substitute,
)
from hast_lightning.runtime.ranks import averaged


class ActivationMode(Enum):
    """Treatment of a batch by an activation quantizer."""

    FLOAT = "float"
    OBSERVE = "observe"
    QUANTIZE = "quantize"


class Rounded(NamedTuple):
    """Weights on their grid, and where their gradient passes; none: everywhere."""

    value: Tensor
    passes: Tensor | None


class WeightQuantizer(nn.Module):
    """Rounds weights per output channel to a range of the current weights, found at every pass.

    Args:
        bits: 2 to 8.
        include_zero: Extend every range to contain zero.
        symmetric: Signed integers with zero in the middle: on the grid of ``0 .. 2^bits - 1``
            the zero point is ``2^(bits - 1)``.
        find: Finds a channel's range; minimum and maximum unless another way is given.
        gradient: ``clipped`` stops the gradient of weights outside their range. Between minimum
            and maximum, where all weights are inside, there is no difference.
        group_size: Weights of a linear layer's channel that share a range; none: all.

    Attributes:
        width: The bits once more, a uint8 scalar.
        factors: Of what shares one range, all of the layer's weights; none: channels have their
            own.
        finds_anew: The range is that of the weights as they are at every pass.
    """

    finds_anew: ClassVar[bool] = True

    width: Tensor
    factors: FoldedFactors | None = None

    def __init__(
        self,
        bits: int,
        include_zero: bool = False,
        *,
        symmetric: bool = False,
        find: RangeFinder = extremes,
        gradient: str = "pass_through",
        group_size: int | None = None,
    ) -> None:
        super().__init__()
        self.bits = bits
        self.group_size = group_size
        self.include_zero = include_zero
        self.grid = Grid(bits, include_zero, symmetric)
        self.find = find
        self.gradient = gradient
        self._held: Rounded | None = None
        # In every state of the student, since a stage may change them.
        self.register_buffer("width", torch.tensor(bits, dtype=torch.uint8))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.set_bits(int(self.width))

    def set_bits(self, bits: int) -> None:
        """Round to another grid from now on; what was learned or found stays as it is."""
        self.bits = bits
        self.grid = replace(self.grid, bits=bits)
        self.width.fill_(bits)

    def change_bits(self, bits: int, weight: Tensor) -> None:
        """Begin anew with other bits for ``weight``, (out_channels, ...)."""
        self.set_bits(bits)

    def parameters_of(self, weight: Tensor) -> AffineParameters:
        """Return scale and zero point of ``weight`` as it is now.

        They have the shape (out_channels, 1, ...), or with groups that of the weight.
        """
        if self.group_size is not None:
            return self.spread(self.group_parameters(weight), weight)
        if self.factors is not None:
            shared = self.shared_parameters(weight)
            scale = self.factors.unfold(shared.scale)
            return AffineParameters(scale, shared.zero_point.expand_as(scale).contiguous())
        low, high = channel_ranges(weight.detach().float(), self.grid, self.find)
        return self.grid.parameters(low, high)

    def share(self, factors: FoldedFactors, weight: Tensor) -> None:
        """Have one range from now on, of all that ``weight`` times ``factors`` holds."""
        self.factors = factors

    def shared_parameters(self, weight: Tensor) -> AffineParameters:
        """Return the one scale and zero point, scalars, of ``weight`` times the factors."""
        assert self.factors is not None
        low, high = self.find(self.factors.fold(weight).reshape(1, -1), self.grid)
        return self.grid.parameters(low.view(()), high.view(()))

    def group_parameters(self, weight: Tensor) -> AffineParameters:
        """Return scale and zero point of each group of ``weight``, (out_channels, groups)."""
        assert self.group_size is not None
        weight = weight.detach().float()
        return self.grid.parameters(*group_ranges(weight, self.group_size, self.grid, self.find))

    def spread(self, groups: AffineParameters, weight: Tensor) -> AffineParameters:
        """Return those of each weight, (out_channels, in_features), of those of each group."""
        size = self.group_size
        assert size is not None
        return AffineParameters(*(spread_groups(each, size, weight.shape[1]) for each in groups))

    def rounded(self, weight: Tensor) -> Tensor:
        """Return ``weight`` on its grid, float32, without gradient."""
        return self._round(weight).value

    def hold(self, weight: Tensor | None) -> None:
        """Round ``weight`` once for several passes; None lets go of it."""
        self._held = None if weight is None else self._round(weight)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weights, with the gradient passed straight through."""
        rounded = self._round(weight) if self._held is None else self._held
        return substitute(weight, rounded.value, rounded.passes)

    def integers_of(self, weight: Tensor) -> Tensor:
        """Return the integers of ``weight``, float32, 0 to ``2^bits - 1``."""
        return quantize(weight, *self.parameters_of(weight), self.bits)

    @torch.no_grad()
    def _round(self, weight: Tensor) -> Rounded:
        parameters, weight = self.parameters_of(weight), weight.float()
        value = quantize_dequantize(weight, *parameters, self.bits)
        all_inside = self.finds_anew and self.find is extremes
        if self.gradient == "pass_through" or all_inside:
            return Rounded(value, None)
        return Rounded(value, is_inside(weight, *parameters, self.bits))


class QuantizedLayer(MadeWeight):
    """Base class: a layer whose weights are fake-quantized; its bias stays in floating point.

    Attributes:
        weight: (out_channels, in_channels / groups, ...), also of a transposed convolution, which
            ``torch.nn`` holds the other way round.
        bits_are_set: Its bits were set for it alone, and are not to be searched.
    """

    weight: Tensor
    weight_quantizer: WeightQuantizer
    bits_are_set: bool = False

    @classmethod
    def from_float(cls, layer: nn.Module, quantizer: WeightQuantizer) -> Self:
        """Take over the parameters of ``layer``: the same objects, not copies.

        Only the weights of a transposed convolution are copied, output channels first.
        """
        result = cls(**arguments_of(layer, type(layer)), device="meta")
        weight, bias = output_first(layer), layer.bias
        if not isinstance(weight, nn.Parameter):
            weight = nn.Parameter(weight.detach().contiguous(), weight.requires_grad)
        assert bias is None or isinstance(bias, nn.Parameter)
        result.weight, result.bias = weight, bias
        result.weight_quantizer = quantizer
        return result

    def made_weight(self) -> Tensor:
        """Return the rounded weights."""
        weight: Tensor = self.weight_quantizer(self.weight)
        return weight


class QuantConv1d(QuantizedLayer, ConvolutionForward, nn.Conv1d):
    """A convolution of (N, C, L)."""


class QuantConv2d(QuantizedLayer, ConvolutionForward, nn.Conv2d):
    """A convolution of (N, C, H, W)."""


class QuantConv3d(QuantizedLayer, ConvolutionForward, nn.Conv3d):
    """A convolution of (N, C, D, H, W)."""


class QuantConvTranspose1d(QuantizedLayer, TransposedForward, nn.ConvTranspose1d):
    """A transposed convolution of (N, C, L)."""


class QuantConvTranspose2d(QuantizedLayer, TransposedForward, nn.ConvTranspose2d):
    """A transposed convolution of (N, C, H, W)."""


class QuantConvTranspose3d(QuantizedLayer, TransposedForward, nn.ConvTranspose3d):
    """A transposed convolution of (N, C, D, H, W)."""


class QuantLinear(QuantizedLayer, LinearForward, nn.Linear):
    """A linear layer of (..., in_features)."""


QUANTIZED: dict[type[nn.Module], type[QuantizedLayer]] = {
    nn.Conv1d: QuantConv1d,
    nn.Conv2d: QuantConv2d,
    nn.Conv3d: QuantConv3d,
    nn.ConvTranspose1d: QuantConvTranspose1d,
    nn.ConvTranspose2d: QuantConvTranspose2d,
    nn.ConvTranspose3d: QuantConvTranspose3d,
    nn.Linear: QuantLinear,
}
"""From the kinds of layers that can be quantized to those that stand for them in a student."""


class ActivationQuantizer(nn.Module):
    """One range for a whole activation tensor, calibrated and then frozen.

    While observing, a batch is first taken into the moving range and then quantized with
    it, so that every layer is calibrated on what the quantized layers before it put out
    (as in ZeroQ and its heirs).

    Args:
        bits: 2 to 8.
        gradient: ``pass_through`` or ``clipped`` to the range.
        momentum: Of the moving average of ranges.
        include_zero: Extend every range to contain zero.
        find: Minimum and maximum of a batch, or another way to find its range.

    Attributes:
        scale: Scale of the frozen range, a float32 scalar. NaN until the range is frozen: a
            network that was never calibrated puts out NaN instead of plausible nonsense.
        zero_point: Its integer-valued zero point, a float32 scalar.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        bits: int,
        *,
        gradient: str = "pass_through",
        momentum: float = 0.9,
        include_zero: bool = False,
        find: RangeFinder = extremes,
    ) -> None:
        super().__init__()
        self.bits = bits
        self.gradient = gradient
        self.include_zero = include_zero
        self.mode = ActivationMode.FLOAT
        # Share of the values that pass unquantized, while a unit is rebuilt.
        self.drop = 0.0
        self.grid = Grid(bits, include_zero)
        self.moving_range = MovingRange(momentum, self.grid, find)
        self._allocate()

    def _allocate(self) -> None:
        """Make room for the frozen range."""
        self.register_buffer("scale", torch.full((), float("nan")))
        self.register_buffer("zero_point", torch.zeros(()))

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Freeze the range to ``[low, high]`` (scalars) and quantize from now on."""
        scale, zero_point = self.grid.parameters(low, high)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)
        self.mode = ActivationMode.QUANTIZE

    def quantize(self, x: Tensor) -> Tensor:
        """Quantize and dequantize ``x`` (any shape) with the frozen range."""
        return fake_quantize(x, self.scale, self.zero_point, self.bits, self.gradient)

    def forward(self, x: Tensor) -> Tensor:
        """Pass through, observe and quantize, or quantize ``x`` (any shape), as the mode says."""
        if self.mode is ActivationMode.FLOAT:
            return x
        if self.mode is ActivationMode.OBSERVE:
            self.moving_range.observe(x)
            current = self.grid.parameters(*self.moving_range.range())
            return fake_quantize(x, *current, self.bits, self.gradient)
        if self.drop:
            # QDrop (Wei et al., ICLR 2022): some values stay as they are.
            return torch.where(torch.rand_like(x) < self.drop, x, self.quantize(x))
        return self.quantize(x)


def activation_quantizers(network: nn.Module) -> list[ActivationQuantizer]:
    """Return the activation quantizers of ``network``, in registration order."""
    return [module for module in network.modules() if isinstance(module, ActivationQuantizer)]


def quantized_layers(network: nn.Module) -> list[tuple[str, QuantizedLayer]]:
    """Return name and module of every layer with fake-quantized weights."""
    return [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, QuantizedLayer)
    ]


def weight_bits(layer: nn.Module) -> int:
    """Return the bits of a layer's weights; 32 where they are left in floating point."""
    if isinstance(layer, QuantizedLayer):
        return layer.weight_quantizer.bits
    return FLOAT_BITS


def set_activation_mode(network: nn.Module, mode: ActivationMode) -> None:
    """Switch every activation quantizer of ``network`` to ``mode``."""
    for quantizer in activation_quantizers(network):
        quantizer.mode = mode


@contextmanager
def floating_activations(network: nn.Module) -> Iterator[None]:
    """Leave all activations of a network unquantized inside the context."""
    modes = {quantizer: quantizer.mode for quantizer in activation_quantizers(network)}
    set_activation_mode(network, ActivationMode.FLOAT)
    try:
        yield
    finally:
        for quantizer, mode in modes.items():
            quantizer.mode = mode


@torch.no_grad()
def freeze_ranges(network: nn.Module) -> None:
    """Fix every activation range to its moving average and quantize with it from now on.

    With several processes the averages are averaged across them, so that every rank
    quantizes alike.
    """
    quantizers = activation_quantizers(network)
    if not quantizers:
        return
    ranges = averaged(torch.stack([torch.stack(q.moving_range.range()) for q in quantizers]))
    for quantizer, (low, high) in zip(quantizers, ranges, strict=True):
        quantizer.set_range(low, high)


@torch.no_grad()
def recalibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Forget all activation ranges, observe ``batches`` of inputs (N, ...) and freeze again."""
    quantizers = activation_quantizers(network)
    if not quantizers:
        return
    for quantizer in quantizers:
        quantizer.moving_range.forget()
    set_activation_mode(network, ActivationMode.OBSERVE)
    with held_weights(network):
        for inputs in batches:
            network(inputs)
    freeze_ranges(network)


@contextmanager
def held_weights(network: nn.Module) -> Iterator[None]:
    """Round every weight once and use it for all passes inside the context.

    The weights must not change inside. Gradients still reach them.
    """
    layers = [layer for _, layer in quantized_layers(network)]
    for layer in layers:
        layer.weight_quantizer.hold(layer.weight)
    try:
        yield
    finally:
        for layer in layers:
            layer.weight_quantizer.hold(None)
