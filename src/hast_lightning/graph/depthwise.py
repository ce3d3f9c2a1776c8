"""Depthwise convolutions that a processor computes in float32 where all else has bfloat16."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hast_lightning.graph.operations import is_depthwise

QUICK_KERNEL = 3


def keep_depthwise_in_float32(network: nn.Module) -> None:
    """Have the depthwise layers that bfloat16 makes slow on a processor compute in float32.

    On a processor torch computes bfloat16 gradients quickly only of those of 3 x 3 without stride
    and dilation. With a stride of 2 they take ten times those in float32
    (``benchmarks/depthwise.py``). Other devices, and what is float32 anyway, stay as they are.

    Args:
        network: Changed in place; its layers stay the objects that they are.
    """
    for layer in network.modules():
        if is_depthwise(layer) and not _is_quick(layer):
            # An object's own function: a class of its own would be no convolution to those who
            # ask for the type. A bound method would not survive pickling.
            vars(layer)["_conv_forward"] = partial(_in_float32, layer)


def _is_quick(layer: Any) -> bool:
    kernel, places = set(layer.kernel_size), {*layer.stride, *layer.dilation}
    return len(layer.kernel_size) == 2 and kernel == {QUICK_KERNEL} and places == {1}


def _in_float32(layer: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    forward = type(layer)._conv_forward
    if input.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        output: Tensor = forward(layer, input, weight, bias)
        return output
    with torch.autocast("cpu", enabled=False):
        values = (None if each is None else each.float() for each in (input, weight, bias))
        output = forward(layer, *values)
    return output
