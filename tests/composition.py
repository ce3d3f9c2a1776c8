"""Composing configurations as the command line does, without starting a job."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir

from hast_lightning.cli import config_folder
from hast_lightning.config import Config, register_schemas, to_object


def composed(*overrides: str) -> Config:
    """The checked configuration of ``python -m hast_lightning <overrides>``."""
    register_schemas()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return to_object(compose("config", overrides=list(overrides)))


def options(group: str) -> list[str]:
    """Names of the files of a group."""
    return sorted(path.stem for path in (Path(config_folder()) / group).glob("*.yaml"))
