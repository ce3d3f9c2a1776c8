"""What was measured of each method in the experiments of a checkout."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from hast_lightning.compare.rows import BITS_IN_NAME, Row, summarize
from hast_lightning.compare.runs import collect
from hast_lightning.config import config_folder


def measured_here() -> dict[str, list[str]]:
    """Return the best top-1 of each method on each network at each bit width, by method.

    Empty where the package is installed: experiments are in a checkout alone.
    """
    folder = config_folder().parent / "experiments"
    if not folder.is_dir():
        return {}
    best: dict[str, dict[tuple[str, tuple[int, int]], Row]] = defaultdict(dict)
    for row in summarize(collect([folder])):
        place, method = (row.model, row.bits), row.method or _method_of(row.recipe)
        if row.top1 is None:
            continue
        known = best[method].get(place)
        if known is None or known.top1 is None or known.top1.mean < row.top1.mean:
            best[method][place] = row
    return {method: [_text(row) for row in rows.values()] for method, rows in best.items()}


def _text(row: Row) -> str:
    weights, activations = row.bits
    return f"{row.top1} W{weights}A{activations} {row.model}"


def _method_of(recipe: str) -> str:
    """Return the method of a recipe, as its file says; empty where it has none here.

    Results of versions before 0.2 name no method.
    """
    names = (recipe, BITS_IN_NAME.sub("", recipe))
    paths = [config_folder() / "experiment" / f"{name}.yaml" for name in names]
    path = next((path for path in paths if path.is_file()), None)
    return "" if path is None else _method_in(path)


def _method_in(path: Path) -> str:
    """Return what the defaults of a recipe choose, or those of the recipe that it begins with."""
    parent = ""
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    for entry in content["defaults"]:
        if isinstance(entry, str):
            parent = entry if entry != "_self_" else parent
        else:
            chosen = {re.sub(r"^override |/", "", str(key)): value for key, value in entry.items()}
            if "method" in chosen:
                return str(chosen["method"])
    return _method_in(path.with_name(f"{parent}.yaml")) if parent else ""
