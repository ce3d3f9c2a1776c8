"""What pictures start from before anything is optimized."""

from __future__ import annotations

from torch import Tensor

from hast_lightning.core.leaves import leaves
from hast_lightning.core.network import FEATURES, PretrainedNetwork

STARTS = ("white", "smooth", "leaves", "textured")
DRAWN = ("leaves", "textured")
"""Pictures of leaves that cover one another, without and with textures."""


def started(network: PretrainedNetwork, white: Tensor, start: str) -> Tensor:
    """Return what samples of a network start from, with mean 0 and deviation 1, more or less.

    Args:
        network: Where it takes features or signals their own noise takes the place of every start.
        white: Standard normal, (N, C, H, W), or (N, C, L) of signals.
        start: One of :data:`STARTS`.
    """
    if start in DRAWN and network.modality != FEATURES and white.dim() == 4:
        count, *shape = white.shape
        return leaves(count, shape, textured=start == "textured").to(white)
    return network.noise_of(white, smooth=start != "white")
