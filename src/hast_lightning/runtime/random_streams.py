"""The random streams of a process as plain values, which a checkpoint can hold."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_streams() -> dict[str, Any]:
    """Return the state of every generator of a run, in tensors, numbers and lists."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(words), gauss],
        "numpy": [str(name), np.asarray(keys).tolist(), position, has_gauss, cached],
    }


def set_random_streams(streams: dict[str, Any]) -> None:
    """Continue the streams that :func:`random_streams` described.

    CUDA's are set where there are as many devices as there were then.
    """
    torch.set_rng_state(streams["torch"].cpu())
    if torch.cuda.is_available() and len(streams["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in streams["cuda"]])
    version, words, gauss = streams["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = streams["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
