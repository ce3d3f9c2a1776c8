"""Gradients of depthwise convolutions in bfloat16 and in float32 on a processor, as ratios.

    python -m benchmarks.depthwise

A ratio above 1: bfloat16 takes longer. ``graph/depthwise.py`` has such layers compute in float32.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.measure import machine

BATCH, SIDE, CHANNELS = 32, 28, 64
SHAPES = {
    "3 x 3": (3, 1, 1),
    "3 x 3, stride 2": (3, 2, 1),
    "3 x 3, dilation 2": (3, 1, 2),
    "5 x 5": (5, 1, 1),
    "5 x 5, stride 2": (5, 2, 1),
}
"""Kernel, stride and dilation."""
PAIRS = 7


def gradients(
    dtype: torch.dtype, kernel: int, stride: int, dilation: int
) -> Callable[[], Sequence[Tensor]]:
    """What computes the gradients of inputs and weights of one layer, channels last."""

    def tensor(*shape: int) -> Tensor:
        values = torch.randn(shape).to(dtype)
        return values.contiguous(memory_format=torch.channels_last)

    padding = dilation * (kernel // 2)
    places = ([stride] * 2, [padding] * 2, [dilation] * 2)
    inputs, weight = tensor(BATCH, CHANNELS, SIDE, SIDE), tensor(CHANNELS, 1, kernel, kernel)
    output = torch.conv2d(inputs, weight, None, *places, CHANNELS)
    received = torch.randn_like(output)
    rest = (None, *places, False, [0, 0], CHANNELS, [True, True, False])
    return lambda: torch.ops.aten.convolution_backward(received, inputs, weight, *rest)


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def main() -> None:
    """Print one row a shape: medians of pairs that take turns."""
    print(f"{CHANNELS} channels, {SIDE} x {SIDE}, batch {BATCH}; {machine(torch.device('cpu'))}\n")
    print("| depthwise | bfloat16, ms | float32, ms | ratio |")
    print("| --- | ---: | ---: | ---: |")
    for name, shape in SHAPES.items():
        narrow, wide = (gradients(dtype, *shape) for dtype in (torch.bfloat16, torch.float32))
        pairs = [(seconds(narrow), seconds(wide)) for _ in range(PAIRS + 1)][1:]
        half, full = (1e3 * statistics.median(each) for each in zip(*pairs, strict=True))
        print(f"| {name} | {half:.1f} | {full:.1f} | **{half / full:.1f}** |")


if __name__ == "__main__":
    main()
