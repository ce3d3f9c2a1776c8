"""Texts to evaluate a network of tokens on: each token is the label of those before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hast_lightning.config import DataConfig
from hast_lightning.errors import DataError
from hast_lightning.files.token_ids import END, read_token_ids

if TYPE_CHECKING:
    from hast_lightning.core.network import PretrainedNetwork


def next_tokens(texts: Tensor) -> Tensor:
    """Return what follows each token of texts (N, length), int64; -1 behind the last one."""
    return torch.cat([texts[:, 1:], torch.full_like(texts[:, :1], END)], dim=1)


@dataclass(frozen=True, eq=False)
class TextData:
    """Texts of a file.

    Attributes:
        texts: (N, length), int64; -1 behind the end of each.
        batch_size: Texts a batch; the last batch may be smaller.
    """

    texts: Tensor
    batch_size: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield tokens (B, length), with any behind the end, and what follows each, or -1."""
        for texts in torch.split(self.texts, self.batch_size):
            yield texts.clamp_min(0), next_tokens(texts)


def load_texts(config: DataConfig, network: PretrainedNetwork) -> TextData:
    """Read the texts of ``data.path``.

    Raises:
        DataError: the source is no file of ids, or they do not fit the network.
    """
    if config.source != "npz":
        raise DataError(
            f"data={config.source} are pictures; the network {network.name} takes tokens "
            "(model.modality=tokens): choose data=npz or data=none"
        )
    if config.path is None:
        raise DataError("data.path is not set: data=npz needs an .npz file with x, token ids")
    origin, path = f"data.path={config.path}", Path(config.path).expanduser()
    ids = read_token_ids(path, network.length, network.num_classes, origin)
    return TextData(torch.from_numpy(ids), config.batch_size)
