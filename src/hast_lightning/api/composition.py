"""Composing a configuration in Python, also inside somebody else's Hydra application."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]  # comes with OmegaConf

from hast_lightning.config import (
    Config,
    config_folder,
    named_modules,
    one_line,
    register_recipes,
    register_schemas,
    spelled_modules,
    to_object,
)
from hast_lightning.errors import ConfigurationError

_OF_AN_APPLICATION = (GlobalHydra, HydraConfig, JobRuntime)


def composed(overrides: Sequence[str]) -> Config:
    """Return the checked configuration of ``hast-lightning <overrides>``.

    Raises:
        ConfigurationError: an override is malformed, unknown or out of range.
    """
    try:
        with _hydra_of_our_own(), initialize_config_dir(str(config_folder()), version_base="1.3"):
            register_schemas(named_modules(overrides))
            register_recipes(overrides)
            # Inside: resolving needs our own resolvers.
            return to_object(compose("config", overrides=spelled_modules(overrides)))
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ConfigurationError(one_line(error, overrides)) from error


@contextmanager
def _hydra_of_our_own() -> Iterator[None]:
    """Give Hydra a state as if no application ran, and put back what it was.

    Composing starts Hydra anew, and registers a schema and resolvers under names that an
    application of the user's may have, too.
    """
    # Finding the plugins registers more of Hydra's own parts.
    Plugins.instance()
    state = Singleton._instances, BaseContainer._resolvers
    store = copy.copy(ConfigStore.instance())
    store.repo = _own_groups(store.repo)
    kept = {kind: part for kind, part in state[0].items() if kind not in _OF_AN_APPLICATION}
    instances: dict[Any, Any] = {**kept, ConfigStore: store}
    Singleton._instances = instances
    BaseContainer._resolvers = dict(BaseContainer._resolvers)
    try:
        yield
    finally:
        Singleton._instances, BaseContainer._resolvers = state


def _own_groups(repo: dict[str, Any]) -> dict[str, Any]:
    """Copy the groups of Hydra's store, whose schemas are never changed and may be shared."""
    return {
        name: _own_groups(entry) if isinstance(entry, dict) else entry
        for name, entry in repo.items()
    }
