"""Small integers without gaps: k bits each, whatever k is."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hast_lightning.errors import ModelError


def packed_size(count: int, bits: int) -> int:
    """Return the bytes of ``count`` integers of ``bits`` bits: all their bits, rounded up."""
    return (count * bits + 7) // 8


def pack(integers: Tensor, bits: int) -> Tensor:
    """Return one stream of bits, (packed_size,), uint8.

    Integer ``i`` (in the order of the flattened tensor) takes the bits ``i * bits`` to
    ``(i + 1) * bits - 1``, its lowest first; bit ``j`` of the stream is bit ``j % 8`` of byte
    ``j // 8``. Bits after the last integer are zero.

    Args:
        integers: Any shape, 0 to ``2^bits - 1``.
        bits: 1 to 8.
    """
    flat = integers.flatten().to("cpu", torch.uint8).numpy()
    stream = np.unpackbits(flat[:, None], axis=1, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(stream.ravel(), bitorder="little"))


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the integers (count,), uint8, that :func:`pack` packed.

    Raises:
        ModelError: there are not as many bytes as that many integers take.
    """
    if packed.dtype != torch.uint8 or packed.shape != (packed_size(count, bits),):
        raise ModelError(
            f"{count} weights of {bits} bits take {packed_size(count, bits)} bytes, not "
            f"{packed.numel()} elements of {packed.dtype}"
        )
    stream = np.unpackbits(packed.cpu().numpy(), count=count * bits, bitorder="little")
    # Each integer is padded with zeros to a byte.
    integers = np.packbits(stream.reshape(count, bits), axis=1, bitorder="little")
    return torch.from_numpy(integers).flatten()
