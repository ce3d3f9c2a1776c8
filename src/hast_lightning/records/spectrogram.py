"""Inputs of any modality as pictures to look at."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hast_lightning.core.network import FEATURES, TOKENS, PretrainedNetwork

IDS_A_ROW = 32
DEVIATIONS = 2.0
"""What is so far from the mean of its coefficient is shown in the darkest and lightest colors."""
COLORS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""From low to high, of 255; evenly spaced, linear between: those of viridis."""


class Pictures(NamedTuple):
    """Pictures and how to show them.

    Attributes:
        images: (N, C, H, W), normalized.
        mean: Per channel, what pixels in [0, 1] were normalized with.
        std: Per channel, likewise.
    """

    images: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]


def as_pictures(inputs: Tensor, network: PretrainedNetwork) -> Pictures:
    """Return pictures as they are, features as spectrograms, and texts as rows of colored ids."""
    if network.modality == TOKENS:
        return Pictures(colored_ids(inputs, network.num_classes), (0.0,) * 3, (1.0,) * 3)
    if network.modality == FEATURES:
        return Pictures(spectrograms(inputs), (0.0,) * 3, (1.0,) * 3)
    return Pictures(inputs, network.mean, network.std)


def spectrograms(features: Tensor) -> Tensor:
    """Return colored maps (N, 3, C coefficients, frames) in [0, 1]: time goes to the right.

    The first coefficient is at the bottom; channels lie one above the other. Each coefficient is
    shown by its own mean and deviation over all samples, or the largest would hide the others.
    Where there are several times as many frames, rows are repeated to be seen.

    Args:
        features: (N, C, frames, coefficients).
    """
    values = features.detach().float().cpu()
    std, mean = torch.std_mean(values, (0, 2), correction=0, keepdim=True)
    share = 0.5 + (values - mean) / (2 * DEVIATIONS * std.clamp_min(1e-6))
    rows = share.permute(0, 1, 3, 2).flatten(1, 2).flip(1)
    rows = rows.repeat_interleave(max(1, rows.shape[2] // rows.shape[1]), dim=1)
    return _colored(rows)


def colored_ids(texts: Tensor, classes: int) -> Tensor:
    """Return texts (N, length) as maps (N, 3, rows, IDS_A_ROW) in [0, 1], a color for each id."""
    ids = texts.detach().float().cpu()
    missing = -ids.shape[1] % IDS_A_ROW
    ids = torch.nn.functional.pad(ids, (0, missing))
    return _colored(ids.view(len(ids), -1, IDS_A_ROW) / max(classes - 1, 1))


def _colored(share: Tensor) -> Tensor:
    """Return numbers (N, H, W) in [0, 1] as colors (N, 3, H, W)."""
    position = share.nan_to_num().clamp(0, 1) * (len(COLORS) - 1)
    lower = position.long().clamp(max=len(COLORS) - 2)
    table = torch.tensor(COLORS) / 255
    colored = torch.lerp(table[lower], table[lower + 1], (position - lower)[..., None])
    return colored.permute(0, 3, 1, 2)
