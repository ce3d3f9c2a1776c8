"""Comparing checkpoints bit by bit."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import torch


def content(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds, but for the one thing that may differ: seconds."""
    held: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    held["callbacks"].pop("StageTimer", None)
    return held


def differences(left: Any, right: Any, path: str = "") -> list[str]:
    """Return where two checkpoints differ in any bit; NaN equals NaN."""
    if isinstance(left, torch.Tensor):
        same = left.dtype == right.dtype and left.shape == right.shape
        same = same and left.numpy().tobytes() == right.numpy().tobytes()
        return [] if same else [path]
    if isinstance(left, dict):
        if left.keys() != right.keys():
            return [f"{path}: {left.keys() ^ right.keys()}"]
        parts = (differences(left[key], right[key], f"{path}/{key}") for key in left)
        return list(chain.from_iterable(parts))
    if isinstance(left, list | tuple):
        if len(left) != len(right):
            return [path]
        pairs = enumerate(zip(left, right, strict=True))
        return list(chain.from_iterable(differences(a, b, f"{path}/{i}") for i, (a, b) in pairs))
    return [] if left == right else [f"{path}: {left} {right}"]
