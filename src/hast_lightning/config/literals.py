"""Values in the grammar of Hydra's overrides."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np

from hast_lightning.errors import ConfigurationError

_PLAIN = re.compile(r"[A-Za-z_][\w./-]*", re.ASCII)


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
