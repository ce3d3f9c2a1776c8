"""The layers, functions and methods that an architecture in a file may name.

An untrusted file can ask for these and for nothing else; none of them reads or writes
files, imports, or runs code that it is given.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from hast_lightning.graph.operations import ACTIVATION_LAYERS, BATCH_NORMS
from hast_lightning.quantization.layer_bits import QUANTIZABLE

LAYERS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        *QUANTIZABLE,  # those whose weights are left in floating point
        *ACTIVATION_LAYERS,
        *(nn.LogSigmoid, nn.Softsign, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink, nn.Threshold),
        *(nn.GLU, nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin),
        *(*BATCH_NORMS, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm),
        *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.RMSNorm),
        *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.LPPool1d, nn.LPPool2d),
        *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
        *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
        *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
        *(nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d),
        *(nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
        *(nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d, nn.Embedding),
    )
}

_OPERATORS = (
    "add sub mul truediv floordiv mod neg pos pow matmul getitem iadd isub imul itruediv abs "
    "eq ne lt le gt ge"
)
_FUNCTIONAL = (
    "relu relu6 leaky_relu prelu elu celu selu gelu silu mish hardswish hardtanh hardsigmoid "
    "sigmoid tanh softplus softsign logsigmoid softmax log_softmax glu dropout pad interpolate "
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool2d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d "
    "adaptive_max_pool2d adaptive_max_pool3d batch_norm group_norm layer_norm instance_norm "
    "local_response_norm rms_norm normalize pixel_shuffle pixel_unshuffle channel_shuffle unfold "
    "fold"
)
_TENSOR = (
    "add sub subtract mul multiply div divide neg pow sqrt rsqrt square abs exp log clamp "
    "sin cos clamp_min clamp_max relu relu_ sigmoid tanh softmax log_softmax mean sum amax amin "
    "max min maximum minimum std var matmul bmm mm einsum cat concat stack chunk split unbind "
    "reshape flatten unflatten squeeze unsqueeze permute transpose swapaxes movedim flip roll "
    "narrow select tile repeat_interleave broadcast_to where lerp addcmul zeros_like ones_like "
    "bitwise_and logical_and logical_or logical_not floor ceil round prelu max_pool2d "
    "avg_pool1d adaptive_avg_pool1d pixel_shuffle channel_shuffle masked_fill tril triu"
)
METHODS = frozenset(
    f"{_TENSOR} view view_as reshape_as contiguous size dim numel expand expand_as repeat t float "
    "clone detach type_as to add_ sub_ mul_ div_ sigmoid_ tanh_ clamp_ unfold".split()
)
ATTRIBUTES = frozenset({"shape", "dtype", "device", "ndim", "T", "mT", "H"})


def _functions() -> dict[str, Callable[..., Any]]:
    named = {f"operator.{name}": getattr(operator, name) for name in _OPERATORS.split()}
    named |= {f"functional.{name}": getattr(F, name) for name in _FUNCTIONAL.split()}
    named |= {f"torch.{name}": getattr(torch, name) for name in _TENSOR.split()}
    named |= {f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "sqrt", "prod")}
    return named | {"getattr": getattr, "int": int, "float": float, "len": len}


FUNCTIONS = _functions()
NAMES = {id(function): name for name, function in FUNCTIONS.items()}
"""From the identity of a function, which need not be hashable, to its name."""
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.bool,
    )
}
