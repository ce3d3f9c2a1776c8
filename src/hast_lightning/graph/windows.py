"""Attention in windows, as torchvision's Swin transformers have it, in layers and products.

torchvision's own function is one step to torch.fx, with all weights inside. Classes are known by
the names of their module: importing torchvision takes seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WINDOWED = "torchvision.models.swin_transformer"
"""The module of the classes that are written out here."""
HIDDEN = -100.0
"""torchvision's mask of tokens that were not neighbours before the shift."""


def written_windows(module: nn.Module) -> Callable[..., nn.Module] | None:
    """Return what writes a module of torchvision's Swin out; none where it needs no writing out."""
    return {
        "ShiftedWindowAttention": WrittenWindowAttention,
        "ShiftedWindowAttentionV2": WrittenWindowAttention,
        "PatchMerging": WrittenPatchMerging,
        "PatchMergingV2": WrittenPatchMerging,
    }.get(type(module).__name__)


def shift_mask(size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """Return what is added to scores behind a cyclic shift, (windows, 1, tokens, tokens).

    Source: Swin (Liu et al., ICCV 2021, section 3.2).

    Args:
        size: Height and width, multiples of the window's.
        window: Height and width of a window.
        shift: By how much rows and columns were rolled.
    """
    regions = torch.zeros(size)
    rows, columns = (
        (slice(0, -w), slice(-w, -s), slice(-s, None)) for w, s in zip(window, shift, strict=True)
    )
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            regions[row, column] = 3 * i + j
    (height, width), (rows_of, columns_of) = size, window
    regions = regions.view(height // rows_of, rows_of, width // columns_of, columns_of)
    flat = regions.permute(0, 2, 1, 3).reshape(-1, rows_of * columns_of)
    apart = flat.unsqueeze(1) != flat.unsqueeze(2)
    return torch.zeros(apart.shape).masked_fill(apart, HIDDEN).unsqueeze(1)


class WrittenWindowAttention(nn.Module):
    """What torchvision's ``ShiftedWindowAttention`` and its second version compute.

    The height and width of maps must be known while it is traced. The bias of positions is a
    constant.
    """

    position_bias: Tensor
    factor: Tensor

    def __init__(self, attention: Any, name: str) -> None:
        super().__init__()
        self.window, self.shift = tuple(attention.window_size), tuple(attention.shift_size)
        self.heads = attention.num_heads
        self.qkv, self.proj = attention.qkv, attention.proj
        with torch.no_grad():
            self.register_buffer("position_bias", attention.get_relative_position_bias().clone())
        scale = getattr(attention, "logit_scale", None)
        self.cosine = scale is not None
        if scale is not None:
            factor = scale.detach().clamp(max=math.log(100.0)).exp()
            self.register_buffer("factor", factor)
            if self.qkv.bias is not None:
                self.qkv = self._without_key_bias(attention.qkv)
        self.train(attention.training)

    @staticmethod
    @torch.no_grad()
    def _without_key_bias(qkv: nn.Linear) -> nn.Linear:
        """Cosine attention has no bias of keys."""
        bias = qkv.bias.detach().clone()
        bias[len(bias) // 3 : 2 * len(bias) // 3] = 0
        layer = nn.Linear(qkv.in_features, qkv.out_features, device="meta")
        layer.weight, layer.bias = qkv.weight, nn.Parameter(bias)
        return layer

    def forward(self, x: Any) -> Any:
        """Map (N, H, W, C) to the same shape."""
        _, height, width, channels = x.shape
        (rows, columns), shift = self.window, self.shift
        below, right = -height % rows, -width % columns
        if below or right:
            x = F.pad(x, (0, 0, 0, right, 0, below))
        size = (height + below, width + right)
        shift = tuple(
            0 if w >= s else by for w, s, by in zip(self.window, size, shift, strict=True)
        )
        if sum(shift):
            x = torch.roll(x, shifts=(-shift[0], -shift[1]), dims=(1, 2))
        x = x.unflatten(2, (-1, columns)).unflatten(1, (-1, rows)).permute(0, 1, 3, 2, 4, 5)
        tokens = x.reshape(-1, rows * columns, channels)
        mask = shift_mask(size, self.window, shift) if sum(shift) else None
        attended = self._attend(tokens, mask, (size[0] // rows) * (size[1] // columns))
        x = attended.reshape(-1, size[0] // rows, size[1] // columns, rows, columns, channels)
        x = x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)
        if sum(shift):
            x = torch.roll(x, shifts=shift, dims=(1, 2))
        return x[:, :height, :width, :] if below or right else x

    def _attend(self, tokens: Any, mask: Tensor | None, windows: int) -> Any:
        """Map tokens (N * windows, T, C) to the same shape."""
        qkv = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        if self.cosine:
            normal = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
            scores = torch.matmul(normal[0], normal[1].transpose(-2, -1)) * self.factor
        else:
            head = self.qkv.in_features // self.heads
            scores = torch.matmul(q, k.transpose(-2, -1)) * head**-0.5
        scores = scores + self.position_bias
        if mask is not None:
            by_window: Any = scores.unflatten(0, (-1, windows)) + mask  # type: ignore[no-untyped-call]
            scores = by_window.flatten(0, 1)
        weights = F.softmax(scores, dim=-1)
        return self.proj(torch.matmul(weights, v).transpose(1, 2).flatten(2))


class WrittenPatchMerging(nn.Module):
    """What torchvision's ``PatchMerging`` and its second version compute: 2x2 tokens become one."""

    def __init__(self, merging: Any, name: str) -> None:
        super().__init__()
        self.reduction, self.norm = merging.reduction, merging.norm
        self.norm_first = type(merging).__name__ == "PatchMerging"
        self.train(merging.training)

    def forward(self, x: Any) -> Any:
        """Map (N, H, W, C) to (N, H / 2, W / 2, 2 C), rounded up."""
        _, height, width, _ = x.shape
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        parts = [x[:, row::2, column::2, :] for column in (0, 1) for row in (0, 1)]
        merged = torch.cat(parts, -1)
        if self.norm_first:
            return self.reduction(self.norm(merged))
        return self.norm(self.reduction(merged))
