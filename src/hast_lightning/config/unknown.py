"""What is said of keys and parts that there are not."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Iterable
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hast_lightning.config.renamed import renamed
from hast_lightning.core.part import Part, group_of, parts


def keys_of(schema: Any) -> list[str]:
    """Return the keys that a schema has, sorted; not ``kind``, which the part itself says."""
    return sorted(field.name for field in fields(schema) if field.name != "kind")


def no_such_key(prefix: str, key: str, known: Iterable[str]) -> str:
    """Return what to say of a ``key`` behind ``prefix`` that is not among those ``known``."""
    names = sorted(known)
    group = prefix.rstrip(".") or "the root"
    return renamed(f"{prefix}{key}") or (
        f"{prefix}{key} is no key of the configuration{did_you_mean(key, names)}; {group} has: "
        f"{', '.join(names) or 'a value and no keys'}"
    )


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return a hint at the names that are like ``name``; empty where none is."""
    close = difflib.get_close_matches(name, known)
    return f"; did you mean {', '.join(close)}" if close else ""


def as_part(schema: Any) -> type[Part] | None:
    """Return the schema where it is that of a part, or the base class of some; else none."""
    return schema if isinstance(schema, type) and issubclass(schema, Part) else None


def no_such_part(key: str, base: type[Part], siblings: Iterable[str], *, bare: bool = False) -> str:
    """Return what to say of a ``key`` that has no part, though it should have one.

    Args:
        key: Of the part.
        base: What parts there are subclasses of.
        siblings: The names of the parts beside it.
        bare: Settings of the part are there all the same.
    """
    group, name = group_of(base), key.rpartition(".")[2]
    hint = did_you_mean(name, [sibling for sibling in siblings if sibling != name])
    options = ", ".join(sorted(parts().get(group, {}))) or "none is known"
    line = f"{key} has no part{hint}; +{group}@{key}=... adds one of: {options}"
    return f"{line}; ~{key} leaves out what is set there" if bare else line


def describe(error: OmegaConfBaseException, word: str, root: Any) -> str | None:
    """Return what to say of a key that OmegaConf does not know; none of any other error.

    Args:
        error: What OmegaConf says.
        word: What was to be set, as ``key=value``; its key goes on where OmegaConf stopped.
            Empty: it was in a file.
        root: Schema of the whole configuration.
    """
    full_key: str = str(error.full_key or "")
    schema: Any = error.object_type
    if word and (line := renamed(word)):
        return line
    if "is not a subclass of" in str(error):
        return _describe_value(error, word.partition("=")[0] or full_key)
    prefix, _, name = full_key.rpartition(".")
    if is_dataclass(schema) and "not in" in str(error):
        if (
            entries := dict(_lists_of_groups(root)).get(getattr(schema, "__name__", ""))
        ) is not None:
            known = ", ".join(keys_of(schema))
            return f"{entries}: {name} is no key of an entry; an entry has: {known}"
        if (part := as_part(schema)) is not None and inspect.isabstract(part):
            return no_such_part(prefix, part, names_beside(error.parent_node), bare=True)
        line = no_such_key(f"{prefix}." if prefix else "", name, keys_of(schema))
        others = [] if word else _others_that_have(name, schema)
        if not others:
            return line
        return (
            f"{line}; it is a key of {', '.join(others)}: to put another part in its place, add "
            f"that by a name of its own and take this one out, ~{prefix}"
        )
    if "is not in struct" in str(error) and isinstance(error.parent_node, DictConfig):
        base = as_part(error.parent_node._metadata.element_type)
        if base is not None:
            return no_such_part(full_key, base, map(str, error.parent_node))
    return None


def _others_that_have(name: str, schema: Any) -> list[str]:
    """Return the parts of the same group that have a key of that name."""
    part = as_part(schema)
    beside = {} if part is None else parts().get(group_of(part), {})
    return sorted(other for other, cls in beside.items() if name in keys_of(cls))


def _describe_value(error: OmegaConfBaseException, key: str) -> str | None:
    """Return what to say of a value where a part belongs; none where no part does."""
    name = str(error).partition("is not a subclass of ")[2].partition(".")[0].split()[0]
    base = next((c for c in Part.__subclasses__() if c.__name__ == name), None)
    if base is None:
        return None
    # Of a part that is new OmegaConf knows the last word of its key only.
    last = str(error.full_key).rpartition(".")[2]
    words = key.split(".")
    key = ".".join(words[: words.index(last) + 1]) if last in words else key
    if "dict is not" in str(error):
        return no_such_part(key, base, ())
    group = group_of(base)
    options = ", ".join(sorted(parts().get(group, {}))) or "none is known"
    return f"{key}: a part is chosen by its group, {group}@{key}=..., one of: {options}"


def names_beside(node: Any) -> list[str]:
    """Return the names in the dictionary that a node is in, its own among them."""
    parent = node._get_parent() if isinstance(node, DictConfig) else None
    return list(map(str, parent)) if isinstance(parent, DictConfig) else []


def _lists_of_groups(schema: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield the name of every schema that a list has entries of, and the key of the list."""
    hints = get_type_hints(schema)
    for field in fields(schema):
        hint, key = hints[field.name], f"{prefix}{field.name}"
        if is_dataclass(hint):
            yield from _lists_of_groups(hint, f"{key}.")
        elif get_origin(hint) is list and is_dataclass(entry := get_args(hint)[0]):
            yield entry.__name__, key  # type: ignore[union-attr]
