"""Words of the command line whose value is a path, or another text that Hydra would misread."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException

from hast_lightning.config.literals import literal

PATHS = frozenset(
    {
        "path",
        "load",
        "checkpoint",
        "artifact",
        "images",
        "predictions",
        "runs",
        "resume",
        "dir",
        "folder",
    }
)
"""Last words of the keys whose values are paths."""


def spelled(key: str, text: str) -> str:
    """Return ``key=text`` as a word that a shell and Hydra read as this very text."""
    return shlex.quote(f"{key}={literal(text)}")


def with_paths_as_texts(words: Iterable[str]) -> list[str]:
    """Return the words with paths in quotes that Hydra would take for numbers.

    ``images=007`` is not the folder 7, and ``resume=1e3`` not 1000.0.
    """
    return [_as_text(word) if _is_path(word) else word for word in words]


def _is_path(word: str) -> bool:
    key, equals, _ = word.partition("=")
    return bool(equals) and not word.startswith("-") and key.rpartition(".")[2] in PATHS


def _as_text(word: str) -> str:
    key, _, text = word.partition("=")
    try:
        value = OverridesParser.create().parse_override(word).value()
    except HydraException:  # it is refused later, with all that is said of it
        return word
    number = isinstance(value, bool | int | float) and str(value) != text
    return f"{key}={literal(text)}" if number else word


def unreadable(word: str) -> str:
    """Return what to say of a ``key=value`` that is outside of Hydra's grammar."""
    works = _that_works(word)
    if works is None:
        return f"{word!r} cannot be read as key=value or group=option"
    return (
        f"{word!r} cannot be read: a value with characters such as = ~ ( ) [ ] {{ }} ' or accents "
        f"needs quotes inside of those of the shell: {works}"
    )


def several(word: str) -> str:
    """Return what to say of a value with a comma, where one value is wanted."""
    key, _, text = word.partition("=")
    return (
        f"{word!r} lists several values: -m runs a job for each, and "
        f"{spelled(key, _at_home(text))} is one value with a comma in it"
    )


def rest_of_value(word: str, words: Sequence[str]) -> str:
    """Return what to add where a word without ``=`` may be the rest of a value with a space."""
    place = words.index(word) if "=" not in word and word in words else 0
    before = words[place - 1] if place else ""
    key, equals, text = before.partition("=")
    if not equals or before.startswith("-"):
        return ""
    return f"; if it belongs to {before!r}: {spelled(key, f'{text} {word}')}"


def _that_works(word: str) -> str | None:
    """Return the word with its value in quotes; none where its key is no key."""
    key, _, text = word.partition("=")
    parts = text[1:-1].split(",") if text.startswith("[") and text.endswith("]") else None
    if parts is None:
        value = literal(_at_home(text))
    else:
        value = literal([_at_home(part.strip().strip("'\"")) for part in parts])
    try:
        parsed = OverridesParser.create().parse_override(f"{key}={value}").value()
    except HydraException:
        return None
    return None if isinstance(parsed, ChoiceSweep) else shlex.quote(f"{key}={value}")


def _at_home(text: str) -> str:
    """Return a path with the home folder in place of ``~``, which a shell leaves behind ``=``."""
    return os.path.expanduser(text) if text.startswith("~") else text
