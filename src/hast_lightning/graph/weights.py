"""Layout of a layer's weights: output channels first, whatever the kind of the layer."""

from __future__ import annotations

from torch import Tensor, nn

from hast_lightning.graph.operations import TRANSPOSED_LAYERS


def output_first(layer: nn.Module) -> Tensor:
    """Return a layer's weights as (out_channels, in_channels / groups, ...).

    The parameter itself for all but transposed convolutions, which ``torch.nn`` holds as
    (in_channels, out_channels / groups, ...).

    Args:
        layer: A convolution, transposed or not, or a linear layer of ``torch.nn``.
    """
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if not isinstance(layer, TRANSPOSED_LAYERS):
        return weight
    return swapped(weight, layer.groups)


def swapped(weight: Tensor, groups: int) -> Tensor:
    """Return weights with inputs and outputs swapped within each group, which undoes itself.

    Args:
        weight: (in_channels, out_channels / groups, ...), or (out_channels, in_channels / groups,
            ...).
        groups: Of the convolution.
    """
    if groups == 1:
        return weight.transpose(0, 1)
    inside, others = weight.shape[0] // groups, weight.shape[1:]
    return weight.reshape(groups, inside, *others).transpose(1, 2).flatten(0, 1)
