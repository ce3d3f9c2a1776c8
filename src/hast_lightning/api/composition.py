"""Composing a configuration in Python, also inside somebody else's Hydra application."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

import numpy as np
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
_PLAIN = re.compile(r"[A-Za-z_][\w./-]*", re.ASCII)


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


def as_overrides(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the leaves of nested ``values`` as overrides, ``{"a": {"b": 1}}`` as ``a.b=1``.

    Raises:
        ConfigurationError: a key is no text, or a configuration cannot hold a value.
    """
    for key, value in values.items():
        if not isinstance(key, str):
            raise ConfigurationError(f"{prefix}{key!r} is no key of the configuration: not a text")
        if isinstance(value, Mapping):
            yield from as_overrides(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={literal(value)}"


def literal(value: Any) -> str:
    """Return ``value`` in the grammar of Hydra's overrides.

    Raises:
        ConfigurationError: a configuration cannot hold it.
    """
    if isinstance(value, np.generic):  # numpy's scalars show themselves in other words
        value = value.item()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{literal(child)}" for key, child in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(literal, value))}]"
    if isinstance(value, PurePath):
        value = str(value)
    if not isinstance(value, str):
        raise ConfigurationError(f"a {type(value).__name__} is no value of a configuration")
    return value if _is_plain(value) else _quoted(value)


def _is_plain(text: str) -> bool:
    return _PLAIN.fullmatch(text) is not None and text.lower() not in (
        *("null", "true", "false", "nan", "inf"),
    )


def _quoted(text: str) -> str:
    # A text is itself: ``${seed}`` in the name of a class is no reference.
    plain = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)
    # Of a run of backslashes only those before the quote have to be doubled.
    escaped = re.sub(r'(\\*)("|$)', lambda match: match[1] * 2 + '\\"' * bool(match[2]), plain)
    return f'"{escaped}"'


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
    store.repo = copy.deepcopy(store.repo)
    kept = {kind: part for kind, part in state[0].items() if kind not in _OF_AN_APPLICATION}
    instances: dict[Any, Any] = {**kept, ConfigStore: store}
    Singleton._instances = instances
    BaseContainer._resolvers = dict(BaseContainer._resolvers)
    try:
        yield
    finally:
        Singleton._instances, BaseContainer._resolvers = state
