"""Every method on a network that it is for, small enough to carry out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hast_lightning.config import Config, config_folder
from hast_lightning.sources.own_images import OwnImages
from tests import diffusion, tokens, transformers
from tests.small_runs import small

METHODS = sorted(path.stem for path in (config_folder() / "method").glob("*.yaml"))
_TRANSFORMER = ("quantizer=transformer", *transformers.WORDS)
WORDS = {
    "psaq": _TRANSFORMER,
    "mimiq_style": _TRANSFORMER,
    "sardfq_style": _TRANSFORMER,
    "self_calibration_style": ("quantizer=minmax", *tokens.WORDS),
    "brecq_style": ("quantizer=lsq",),
    "eda_dm_style": ("quantizer=minmax", *diffusion.WORDS, *diffusion.SMALL),
}
"""Of the methods that are for another network than the bundled one, or for another quantizer."""


def small_method(method: str, folder: Path) -> Config:
    """Compose a method in a few steps; pictures of the user are black ones in the folder."""
    config = small(f"method={method}", *WORDS.get(method, ("quantizer=minmax",)))
    for source in config.sources.values():
        if isinstance(source, OwnImages):
            source.path = str(folder / "pictures.npz")
            np.savez(source.path, x=np.zeros((12, 8, 8, 1), dtype=np.uint8))
    return config
