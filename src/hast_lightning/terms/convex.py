"""A term that keeps weights close to the grid that they are rounded to."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hast_lightning.core.batch import Needs, Seen
from hast_lightning.core.network import TOKENS, Network
from hast_lightning.core.part import part
from hast_lightning.core.term import Term
from hast_lightning.errors import ConfigurationError
from hast_lightning.quantization.fake_quant import QuantizedLayer, quantized_layers

HIGHEST = 10.0
"""Most that one weight counts: half-way between two integers the logarithm is infinite."""


def grid_distance(weight: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Return ``-log |cos(pi r)|`` of each weight, where ``r`` are the steps to its integer.

    It is zero on the grid, grows towards the middle between two integers, and is convex in
    between. Beyond the ends of the grid the nearest integer is the last one.

    Source: MOCQ (Fan et al., TPAMI, doi 10.1109/TPAMI.2024.3521589), its released code, where the
    grid has no end.

    Args:
        weight: (out_channels, ...).
        scale: Not zero, broadcastable to ``weight``.
        zero_point: Of the shape of ``scale``.
        bits: 2 to 8.

    Returns:
        Of the shape of ``weight``, at most :data:`HIGHEST`.
    """
    steps = weight / scale + zero_point
    nearest = steps.detach().round().clamp(0, 2**bits - 1)
    residue = (steps - nearest).clamp(-0.5, 0.5)
    return -torch.cos(math.pi * residue).clamp_min(math.exp(-HIGHEST)).log()


@part("term", "convex")
class Convex(Term):
    """Distance of the student's weights from the integers that they are rounded to.

    ``-log |cos(pi r)|``, with ``r`` the steps from a weight to its integer: the mean over the
    weights of all layers but the first and the last. Source: MOCQ (Fan et al., TPAMI, doi
    10.1109/TPAMI.2024.3521589), there with one step for all layers and a weight that
    follows the size of gradients.
    """

    title = "Distance of weights from the grid"
    modalities = (*Term.modalities, TOKENS)
    several_outputs = True

    def bind(self, teacher: Network, student: Network) -> Needs:
        """Find the student's layers.

        Raises:
            ConfigurationError: there is none between the first and the last.
        """
        layers: list[QuantizedLayer] = [
            layer for _, layer in quantized_layers(student.graph_module)
        ][1:-1]
        if not layers:
            raise ConfigurationError(
                "the term convex is about layers between the first and the last; there are none"
            )
        # Not registered: they are the student's.
        vars(self)["_layers"] = layers
        return Needs(student=())

    @property
    def layers(self) -> list[QuantizedLayer]:
        """Return the layers whose weights count."""
        found: list[QuantizedLayer] = vars(self)["_layers"]
        return found

    def distance(self) -> Tensor:
        """Return the mean over all their weights, a scalar."""
        total = torch.stack([_sum(layer) for layer in self.layers]).sum()
        return total / sum(layer.weight.numel() for layer in self.layers)

    def forward(self, seen: Seen) -> Tensor:
        """Return the scalar loss."""
        return self.distance()


def _sum(layer: QuantizedLayer) -> Tensor:
    quantizer = layer.weight_quantizer
    scale, zero_point = (each.detach() for each in quantizer.parameters_of(layer.weight))
    return grid_distance(layer.weight.float(), scale, zero_point, quantizer.bits).sum()
