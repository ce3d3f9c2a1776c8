"""A network in floating point of which some layers' weights are rounded, to see what it loses."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from hast_lightning.quantization.fake_quant import (
    ActivationMode,
    WeightQuantizer,
    quantized_layers,
    set_activation_mode,
)


class Probe:
    """A copy of a student that quantizes nothing but what it is asked to.

    Args:
        student: Left as it is; its quantizers round the weights of the copy.
        batches: Inputs that the copy sees, (n, ...) each.

    Attributes:
        network: The copy.
        batches: As given.
        float_logits: What the copy says unrounded, (N, classes).
    """

    def __init__(self, student: fx.GraphModule, batches: Sequence[Tensor]) -> None:
        self.network = copy.deepcopy(student)
        set_activation_mode(self.network, ActivationMode.FLOAT)
        self._layers = dict(quantized_layers(self.network))
        self._quantizers: dict[str, WeightQuantizer] = {}
        for name, layer in self._layers.items():
            self._quantizers[name] = layer.weight_quantizer
            layer.weight_quantizer = nn.Identity()  # type: ignore[assignment]  # rounds nothing
        self._rounded: dict[tuple[str, int], Tensor] = {}
        self.batches = tuple(batches)
        self.float_logits = self.logits({})

    def weight(self, name: str) -> Tensor:
        """Return the unrounded weights of a layer, (out_channels, ...)."""
        return self._layers[name].weight

    @torch.no_grad()
    def rounded(self, name: str, bits: int) -> Tensor:
        """Return a layer's weights at some bits, with ranges as its quantizer finds them."""
        if (name, bits) not in self._rounded:
            quantizer, weight = self._quantizers[name], self.weight(name)
            quantizer.change_bits(bits, weight)
            self._rounded[name, bits] = quantizer.rounded(weight)
        return self._rounded[name, bits]

    @torch.no_grad()
    def logits(self, bits: Mapping[str, int]) -> Tensor:
        """Return what the network says, (N, classes), where these layers alone are rounded."""
        unrounded = {name: self.weight(name).data for name in bits}
        for name, width in bits.items():
            self.weight(name).data = self.rounded(name, width)
        found = torch.cat([self.network(inputs) for inputs in self.batches])
        for name, weight in unrounded.items():
            self.weight(name).data = weight
        return found
