"""The student with its rounding done: integers, scales and zero points in place of quantizers.

All exports start from this form. It computes the very numbers that the student computes, with
operations alone that every engine knows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from hast_lightning.errors import ModelError
from hast_lightning.graph.arguments import arguments_of
from hast_lightning.graph.heads import restore_head
from hast_lightning.graph.names import value_names
from hast_lightning.graph.operations import IDENTITIES, is_stochastic_depth, layer_of
from hast_lightning.quantization.fake_quant import (
    QUANTIZED,
    ActivationQuantizer,
    QuantizedLayer,
    activation_quantizers,
    quantized_layers,
)
from hast_lightning.quantization.forwards import (
    ConvolutionForward,
    LinearForward,
    MadeWeight,
    TransposedForward,
)
from hast_lightning.quantization.log2 import Log2Quantizer, log2_quantize
from hast_lightning.quantization.ranges import spread_groups

WEIGHT = "quantized_weight"
"""Name of a frozen layer's weights among its children."""
NO_OPERATION_LAYERS = (*IDENTITIES, nn.AlphaDropout)
"""Regularization, of which evaluation mode leaves nothing."""


class FrozenWeight(nn.Module):
    """Weights as integers: ``(integers - zero_point) * scale``.

    Attributes:
        integers: uint8, 0 to ``2^bits - 1``, of the shape of the weights.
        scale: float32, (out_channels, 1, ...); with groups (out_channels, groups).
        zero_point: float32, of the same shape; not always one of the integers; one half at 1
            bit.
        bits: 1 to 8.
        group_size: Neighboring weights of a linear layer's channel that share a scale; none: all.
    """

    bits: int
    group_size: int | None
    integers: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        integers: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        bits: int,
        group_size: int | None = None,
    ) -> None:
        super().__init__()
        self.bits = bits
        self.group_size = group_size
        self.register_buffer("integers", integers)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)

    def forward(self) -> Tensor:
        """Return the weights, float32."""
        scale, zero_point = self.scale, self.zero_point
        if self.group_size is not None:
            scale, zero_point = (
                spread_groups(each, self.group_size, self.integers.shape[1])
                for each in (scale, zero_point)
            )
        return (self.integers.float() - zero_point) * scale

    @property
    def largest(self) -> int:
        """Return the largest integer of the grid."""
        return int(2**self.bits) - 1

    @property
    def per_tensor(self) -> bool:
        """Return whether all channels have the same scale and zero point."""
        return all(
            bool((each == each.flatten()[0]).all()) for each in (self.scale, self.zero_point)
        )

    @property
    def symmetric(self) -> bool:
        """Return whether zero is in the middle of the grid, as in signed integers."""
        return bool((self.zero_point == 2 ** (self.bits - 1)).all())


class FrozenLayer(MadeWeight):
    """Base class: a layer with :class:`FrozenWeight`; its bias stays in floating point."""

    quantized_weight: FrozenWeight

    def __init__(self, weight: FrozenWeight, **arguments: Any) -> None:
        super().__init__(**arguments)
        del self.weight
        self.quantized_weight = weight

    def made_weight(self) -> Tensor:
        """Return the weights, float32."""
        weight: Tensor = self.quantized_weight()
        return weight


class FrozenConv1d(FrozenLayer, ConvolutionForward, nn.Conv1d):
    """A convolution of (N, C, L)."""


class FrozenConv2d(FrozenLayer, ConvolutionForward, nn.Conv2d):
    """A convolution of (N, C, H, W)."""


class FrozenConv3d(FrozenLayer, ConvolutionForward, nn.Conv3d):
    """A convolution of (N, C, D, H, W)."""


class FrozenConvTranspose1d(FrozenLayer, TransposedForward, nn.ConvTranspose1d):
    """A transposed convolution of (N, C, L)."""


class FrozenConvTranspose2d(FrozenLayer, TransposedForward, nn.ConvTranspose2d):
    """A transposed convolution of (N, C, H, W)."""


class FrozenConvTranspose3d(FrozenLayer, TransposedForward, nn.ConvTranspose3d):
    """A transposed convolution of (N, C, D, H, W)."""


class FrozenLinear(FrozenLayer, LinearForward, nn.Linear):
    """A linear layer of (..., in_features)."""


FROZEN_CONVOLUTIONS: dict[type[nn.Module], type[FrozenLayer]] = {
    nn.Conv1d: FrozenConv1d,
    nn.Conv2d: FrozenConv2d,
    nn.Conv3d: FrozenConv3d,
    nn.ConvTranspose1d: FrozenConvTranspose1d,
    nn.ConvTranspose2d: FrozenConvTranspose2d,
    nn.ConvTranspose3d: FrozenConvTranspose3d,
}
FROZEN: dict[type[nn.Module], type[FrozenLayer]] = {
    **FROZEN_CONVOLUTIONS,
    nn.Linear: FrozenLinear,
}
"""From the kinds of layers that can be quantized to their frozen ones."""


class FrozenActivation(nn.Module):
    """Rounds an activation to its grid: ``scale * (q - zero_point)``, ``q`` in 0 to 2^bits - 1.

    Attributes:
        scale: float32 scalar.
        zero_point: float32 scalar, integer-valued; outside the grid for a range without zero.
        bits: 2 to 8.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)

    @property
    def largest(self) -> int:
        """Return the largest integer of the grid."""
        return int(2**self.bits) - 1

    def forward(self, x: Tensor) -> Tensor:
        """Round values of any shape; computed in float32 as the student does."""
        steps = torch.round(x.float() / self.scale)
        # Not torch.clamp: with tensors as bounds it is ten times slower on a CPU.
        steps = torch.maximum(steps, -self.zero_point)
        return torch.minimum(steps, self.largest - self.zero_point) * self.scale


class FrozenLog2(nn.Module):
    """Rounds values in [0, 1] to powers of two, as the student does; no range belongs to it.

    Attributes:
        bits: 2 to 8.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        """Round values of any shape."""
        return log2_quantize(x, self.bits)


@torch.no_grad()
def freeze(student: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of ``student`` on the CPU whose quantizers are frozen.

    What does nothing in evaluation mode is left out of its graph. It puts out what the network did
    that the student was made of: probabilities, where that ended in a softmax.

    Args:
        student: Converted, calibrated, in evaluation mode; left as it is.

    Raises:
        ModelError: the student was never calibrated, or a weight is not finite.
    """
    _require_calibrated(student)
    frozen = copy.deepcopy(student).cpu().float().to(memory_format=torch.contiguous_format)
    for name, layer in quantized_layers(frozen):
        frozen.set_submodule(name, _frozen_layer(name, layer))
    for name, module in list(frozen.named_modules()):
        if isinstance(module, Log2Quantizer):
            frozen.set_submodule(name, FrozenLog2(module.bits))
        elif isinstance(module, ActivationQuantizer):
            frozen.set_submodule(name, _frozen_activation(module))
    for module in frozen.modules():
        # A file has whatever is computed with, also what a network makes when it is built.
        module._non_persistent_buffers_set.clear()
    _erase_no_operations(frozen)
    restore_head(frozen)
    return frozen.requires_grad_(False).eval()


def frozen_layers(network: nn.Module) -> Iterator[tuple[str, FrozenLayer]]:
    """Yield name and module of every layer with frozen weights."""
    for name, module in network.named_modules():
        if isinstance(module, FrozenLayer):
            yield name, module


def frozen_activations(network: fx.GraphModule) -> Iterator[tuple[str, FrozenActivation]]:
    """Yield every frozen activation quantizer, behind the name of the value that it rounds."""
    names = value_names(network.graph)
    for node in network.graph.nodes:
        layer = layer_of(node, network)
        if isinstance(layer, FrozenActivation):
            yield names[node.all_input_nodes[0]], layer


def _require_calibrated(student: nn.Module) -> None:
    for quantizer in activation_quantizers(student):
        if not (quantizer.scale.isfinite().all() and quantizer.zero_point.isfinite().all()):
            raise ModelError(
                "the student's activation ranges are not calibrated: nothing to export"
            )


def _frozen_layer(name: str, layer: QuantizedLayer) -> nn.Module:
    if not layer.weight.isfinite().all():
        raise ModelError(f"the student's layer {name} has NaN or infinite weights")
    quantizer = layer.weight_quantizer
    bits, group_size = quantizer.bits, quantizer.group_size
    scale, zero_point = quantizer.parameters_of(layer.weight)
    integers = quantizer.integers_of(layer.weight).to(torch.uint8)
    if group_size is not None:
        scale, zero_point = quantizer.group_parameters(layer.weight)
    weight = FrozenWeight(integers, scale.float(), zero_point.float(), bits, group_size)
    plain = next(kind for kind, quantized in QUANTIZED.items() if type(layer) is quantized)
    result = FROZEN[plain](weight, **arguments_of(layer, plain))
    result.bias = layer.bias
    return result


def _frozen_activation(quantizer: ActivationQuantizer) -> FrozenActivation:
    scale, zero_point = (
        value.detach().float().reshape(()).clone()
        for value in (quantizer.scale, quantizer.zero_point)
    )
    return FrozenActivation(scale, zero_point, quantizer.bits)


def _erase_no_operations(network: fx.GraphModule) -> None:
    for node in list(network.graph.nodes):
        layer = layer_of(node, network)
        # Networks are traced in evaluation mode, in which it does nothing either.
        if isinstance(layer, NO_OPERATION_LAYERS) or is_stochastic_depth(node, layer):
            node.replace_all_uses_with(node.args[0])
            network.graph.erase_node(node)
    network.delete_all_unused_submodules()
    network.recompile()
