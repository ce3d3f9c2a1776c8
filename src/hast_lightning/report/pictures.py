"""Images as addresses that hold them, so that a page needs no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

MAX_SIDE = 112
"""Larger images are shrunk to at most this many pixels a side."""


def data_addresses(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> list[str]:
    """Return PNGs as ``data:`` addresses.

    Args:
        images: (N, C, H, W), normalized; of other than one or three channels the mean is shown.
            Signals (N, C, L) are shown as they are, a row for each channel.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel.
    """
    shape = (1, -1, *(1,) * (images.dim() - 2))
    pixels = images.detach().float().cpu() * torch.tensor(std).view(shape)
    pixels = pixels + torch.tensor(mean).view(shape)
    if pixels.dim() == 3:
        pixels = pixels[:, None]
    if pixels.shape[1] != 3:
        pixels = pixels.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    whole = pixels.nan_to_num().clamp(0, 1).mul(255).round().to(torch.uint8)
    return [_address(Image.fromarray(array)) for array in whole.permute(0, 2, 3, 1).numpy()]


def _address(picture: Image.Image) -> str:
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    content = io.BytesIO()
    picture.save(content, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
