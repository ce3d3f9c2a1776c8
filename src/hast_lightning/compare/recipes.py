"""Recipes' files, which say what results of former versions do not."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from hast_lightning.config import config_folder

BITS_IN_NAME = re.compile(r"_w(\d+)a(\d+)(?!\d)")
THEN = {"cifar10_resnet20_recommended": "hast_adam"}
"""Methods that recipes had before 0.2, where they have others today."""


@cache
def method_of(recipe: str) -> str:
    """Return the method that a recipe had before 0.2; empty where it is not known.

    Results of these versions name no method. It is that of the recipe's file but for :data:`THEN`.
    """
    names = (recipe, BITS_IN_NAME.sub("", recipe))
    then = next((THEN[name] for name in names if name in THEN), "")
    if then:
        return then
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
