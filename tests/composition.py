"""Composing configurations as the command line does, without starting a job."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from hast_lightning.config import (
    Config,
    config_folder,
    named_modules,
    register_recipes,
    register_schemas,
    spelled_modules,
    to_object,
)


def composed_raw(*overrides: str) -> DictConfig:
    """The configuration of ``python -m hast_lightning <overrides>``, not checked yet."""
    register_schemas(named_modules(overrides))
    words = spelled_modules(overrides)
    register_recipes(words)
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose("config", overrides=words)


def composed(*overrides: str) -> Config:
    """The same, checked."""
    return to_object(composed_raw(*overrides))


def options(group: str) -> list[str]:
    """Names of the files of a group."""
    return sorted(path.stem for path in (Path(config_folder()) / group).glob("*.yaml"))
