"""From a composed configuration to objects, and from a saved one back to a composed one."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigNode, ConfigStore
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from hast_lightning.config.root import Config
from hast_lightning.config.unknown import (
    as_part,
    keys_of,
    names_beside,
    no_such_key,
    no_such_part,
)
from hast_lightning.core.part import group_of, part_class, parts
from hast_lightning.errors import ConfigurationError, first_line

ROOMS = ("sources", "terms", "transforms", "stages", "quantization", "methods")
"""Rooms of the package that parts are in; every module there is imported."""


def register_schemas(modules: Collection[str] = ()) -> None:
    """Make the schemas of the root and of every part known to Hydra; idempotent.

    Args:
        modules: The user's own modules with parts.

    Raises:
        ConfigurationError: one of the modules cannot be imported, or a setting of one of their
            parts is of a type that a configuration cannot hold.
    """
    import_parts(modules)
    OmegaConf.register_new_resolver("first", _first, replace=True)
    store = ConfigStore.instance()
    # Hydra copies its store whenever it composes or lists the options of a group. With as many
    # schemas as here that is a quarter of the time to compose, and most of that of --help. What is
    # loaded from the store is a copy in any case.
    ConfigStore.__deepcopy__ = lambda self, _: self  # type: ignore[attr-defined]
    if not _is_stored(store.repo, "schema", Config):
        store.repo["schema.yaml"] = _stored("schema", Config)
    for group, classes in parts().items():
        entries = store.repo.setdefault(group, {})
        for name, cls in classes.items():
            schema: Any = cls
            if not _is_stored(entries, name, schema):
                entries[f"{name}.yaml"] = _stored(name, schema, group)


def _is_stored(entries: Mapping[str, Any], name: str, schema: type) -> bool:
    """Return whether Hydra knows a schema."""
    entry = entries.get(f"{name}.yaml")
    return entry is not None and OmegaConf.get_type(entry.node) is schema


@functools.cache
def _stored(name: str, schema: type, group: str | None = None) -> ConfigNode:
    """Return the entry of a schema in Hydra's store.

    Making one of a class takes milliseconds, and each call of ``quantize`` has a store of its own.

    Raises:
        ConfigurationError: a setting is of a type that a configuration cannot hold.
    """
    try:
        node = OmegaConf.structured(schema)
    except OmegaConfBaseException as error:
        raise ConfigurationError(
            f"{group}={name}: {error.full_key}: {first_line(error)}"
        ) from error
    return ConfigNode(f"{name}.yaml", node, group, package=None, provider=None)


def import_parts(modules: Collection[str] = ()) -> None:
    """Import the package's own parts and the user's.

    Raises:
        ConfigurationError: one of the user's modules cannot be imported.
    """
    for room in ROOMS:
        package = importlib.import_module(f"hast_lightning.{room}")
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(found.name)
    # As "python -m" does; the console script does not.
    if modules and "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    for name in modules:
        try:
            importlib.import_module(name)
        except ConfigurationError:
            raise
        # The user's own code may raise anything.
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ConfigurationError(
                f"modules: {name} cannot be imported: {type(error).__name__}: {reason}"
            ) from error


@functools.cache
def hints_of(schema: Any) -> dict[str, Any]:
    """Return the types of a schema's fields, which Python would evaluate from their texts anew."""
    return get_type_hints(schema)


def _first(*values: Any) -> Any:
    """Return the first of the values that is set."""
    return next((value for value in values if value is not None), None)


def to_object(config: DictConfig) -> Config:
    """Resolve the composed configuration and run every check.

    Raises:
        ConfigurationError: a value is missing, of the wrong type or out of range.
    """
    result = _build(config, "", inside_part=False)
    assert isinstance(result, Config)
    return result


def _build(node: Any, key: str, *, inside_part: bool) -> Any:
    """Return the object of a node, whose key is ``key``; its fields first."""
    if isinstance(node, ListConfig):
        return [
            _build(_get(node, i, f"{key}.{i}"), key, inside_part=inside_part)
            for i in range(len(node))
        ]
    if not isinstance(node, DictConfig):
        return node
    schema: Any = OmegaConf.get_type(node)
    if not is_dataclass(schema):
        return {
            str(name): _build(
                _get(node, name, _dotted(key, name)), _dotted(key, name), inside_part=inside_part
            )
            for name in node
        }
    part = as_part(schema)
    if part is not None and inspect.isabstract(part):
        raise ConfigurationError(no_such_part(key, part, names_beside(node), bare=True))
    inside_part = inside_part or part is not None
    _refuse_added_keys(node, schema, key)
    values = {}
    for each in fields(schema):
        name = _dotted(key, each.name)
        value = _get(node, each.name, name)
        _refuse_value_for_group(value, schema, each.name, name)
        values[each.name] = _build(value, name, inside_part=inside_part)
    if part is not None and values["kind"] != part.kind:
        raise ConfigurationError(
            f"{key}.kind={values['kind']}: it is of kind {part.kind}; choose another part by its "
            f"group, {group_of(part)}@{key}={values['kind']}"
        )
    make: Any = schema
    try:
        return make(**values)
    except ConfigurationError as error:
        # A part does not know where in the configuration it stands, nor does a network.
        told = str(error).replace("model.", f"{key}.") if key.startswith("teachers.") else error
        raise ConfigurationError(f"{key}.{error}" if inside_part else str(told)) from error


def _dotted(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)


def _get(node: Any, name: Any, key: str) -> Any:
    """Return a value of a node, resolved.

    Raises:
        ConfigurationError: it is not set, or of the wrong type.
    """
    if OmegaConf.is_missing(node, name):
        raise ConfigurationError(f"{key} is not set")
    try:
        return node[name]
    except InterpolationToMissingValueError as error:
        missing = first_line(error).rpartition(": ")[2]
        raise ConfigurationError(f"{missing} is not set") from error
    except OmegaConfBaseException as error:
        raise ConfigurationError(f"{key}: {first_line(error)}") from error


def _refuse_added_keys(node: DictConfig, schema: Any, key: str) -> None:
    """Refuse what the schema does not have: Hydra's ``+key=value`` adds it all the same."""
    known = {field.name for field in fields(schema)}
    for name in map(str, node):
        if name not in known:
            raise ConfigurationError(no_such_key(f"{key}." if key else "", name, keys_of(schema)))


def _refuse_value_for_group(value: Any, schema: Any, field: str, key: str) -> None:
    """Refuse a value that an interpolation puts where a group of keys belongs."""
    hint: Any = hints_of(schema)[field]
    if is_dataclass(hint) and not (
        isinstance(value, DictConfig) and is_dataclass(OmegaConf.get_type(value))
    ):
        raise ConfigurationError(
            f"{key}={value!r} is not a group of keys; {key} has: "
            f"{', '.join(sorted(each.name for each in fields(hint)))}"
        )
    for kind, container, words in ((dict, DictConfig, "keys"), (list, ListConfig, "values")):
        if get_origin(hint) is kind and not isinstance(value, container):
            raise ConfigurationError(f"{key}={value!r} is no {kind.__name__} of {words}")


def from_saved(saved: Any) -> DictConfig:
    """Return the composed configuration that a saved one is; parts are found by their ``kind``.

    Raises:
        ConfigurationError: it is no configuration, or a part is not known here.
    """
    if not isinstance(saved, Mapping):
        raise ConfigurationError("it is no mapping of keys to values")
    import_parts()
    named = saved.get("modules")
    missing = [m for m in named if m not in sys.modules] if isinstance(named, list) else []
    if missing:
        # Whoever wrote the file must not choose what code is run.
        raise ConfigurationError(
            f"the run has parts of your own; name their modules again, modules={missing}".replace(
                "'", ""
            )
        )
    node = OmegaConf.structured(Config)
    _fill(node, saved, Config, "")
    assert isinstance(node, DictConfig)
    return node


def _fill(node: DictConfig, saved: Mapping[Any, Any], schema: Any, key: str) -> None:
    """Set the values of a node of ``schema``, whose key is ``key``."""
    hints = hints_of(schema)
    known = {field.name for field in fields(schema)}
    for name, value in saved.items():
        if name not in known:
            raise ConfigurationError(
                no_such_key(f"{key}." if key else "", str(name), keys_of(schema))
            )
        node[name] = _typed(hints[name], value, _dotted(key, name))


def _typed(hint: Any, value: Any, key: str) -> Any:
    """Return a value as a node of its type; parts of the type that their ``kind`` names."""
    arguments = [each for each in get_args(hint) if each is not type(None)]
    if value is not None and get_origin(hint) is dict and isinstance(value, Mapping):
        return {
            name: _typed(arguments[1], each, _dotted(key, name)) for name, each in value.items()
        }
    if get_origin(hint) is None or value is None:
        wanted = hint
    else:
        wanted = next((each for each in arguments if is_dataclass(each)), hint)
    if not (is_dataclass(wanted) and isinstance(value, Mapping)):
        return value
    schema: Any = wanted
    if (part := as_part(schema)) is not None:
        schema = part_class(group_of(part), str(value.get("kind")))
    node = OmegaConf.structured(schema)
    _fill(node, value, schema, key)
    return node
