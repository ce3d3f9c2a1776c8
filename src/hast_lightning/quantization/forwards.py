"""Forward passes of layers that make their weights at every call.

Fake-quantized layers and the frozen ones of exports compute alike; they differ in their weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from hast_lightning.graph.weights import swapped

_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


class MadeWeight(nn.Module, ABC):
    """Base class: a layer of ``torch.nn`` whose weights are made at every call.

    Attributes:
        bias: (out_channels,), in floating point; none: there is none.
    """

    bias: Any  # Convolutions and linear layers of torch declare it differently.

    @abstractmethod
    def made_weight(self) -> Tensor:
        """Return the weights, (out_channels, in_channels / groups, ...)."""


class ConvolutionForward(MadeWeight):
    """Convolves."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (N, C, ...)."""
        layer: Any = self
        output: Tensor = layer._conv_forward(input, self.made_weight(), self.bias)
        return output


class TransposedForward(MadeWeight):
    """Convolves, transposed."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Convolve (N, C, ...), to ``output_size`` where several sizes are possible."""
        layer: Any = self
        dimensions = len(layer.kernel_size)
        padding = layer._output_padding(
            input,
            output_size,
            layer.stride,
            layer.padding,
            layer.kernel_size,
            dimensions,
            layer.dilation,
        )
        weight = swapped(self.made_weight(), layer.groups)
        places = (layer.stride, layer.padding, padding, layer.groups, layer.dilation)
        output: Tensor = _TRANSPOSED[dimensions - 1](input, weight, self.bias, *places)
        return output


class LinearForward(MadeWeight):
    """Maps linearly."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features)."""
        return F.linear(input, self.made_weight(), self.bias)
