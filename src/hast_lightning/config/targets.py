"""Objects that a configuration names by ``_target_``: callbacks and loggers of Lightning, or yours.

What a ``_target_`` names is code. A recipe, a run folder or any other file may have been written by
somebody else, so a target counts only where the user names it on the command line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from hast_lightning.errors import ConfigurationError

TARGET = "_target_"
NAME = re.compile(r"[\w.]+")
"""A dotted name, whole: a part of one that was typed does not count."""


def targets_in(entries: Any) -> Iterator[str]:
    """Yield what every ``_target_`` in nested entries names."""
    if isinstance(entries, Mapping):
        for key, value in entries.items():
            if key == TARGET:
                yield str(value)
            else:
                yield from targets_in(value)
    elif isinstance(entries, list | tuple):
        for entry in entries:
            yield from targets_in(entry)


def refuse_untyped(entries: Any, key: str, words: Iterable[str]) -> None:
    """Refuse a target that the command line does not name.

    Args:
        entries: What the configuration holds under ``key``.
        key: For messages.
        words: What the user typed.

    Raises:
        ConfigurationError: there is such a target.
    """
    typed = {name for word in words for name in NAME.findall(word)}
    if OmegaConf.is_config(entries):
        # Resolved: a reference, or a resolver such as oc.create, may hold a target.
        entries = OmegaConf.to_container(entries, resolve=True)
    for target in targets_in(entries):
        if target not in typed:
            raise ConfigurationError(
                f"{key} has {TARGET}: {target}, which is code that a file cannot have run; name it "
                f"on the command line: trust=[{target}]"
            )


def made(entries: Sequence[Any], key: str, kind: type) -> list[Any]:
    """Return the objects that entries describe.

    Args:
        entries: Mappings with ``_target_`` and the arguments; objects are taken as they are.
        key: For messages.
        kind: What they have to be.

    Raises:
        ConfigurationError: an entry names nothing, cannot be made, or is of another kind.
    """
    return [_made(entry, f"{key}.{number}", kind) for number, entry in enumerate(entries)]


def _made(entry: Any, key: str, kind: type) -> Any:
    if isinstance(entry, Mapping):
        if TARGET not in entry:
            raise ConfigurationError(f"{key} says no {TARGET}: package.module.Class")
        try:
            entry = instantiate(dict(entry))
        except InstantiationException as error:
            # The first line of several may only say where it happened.
            reason = " ".join(str(error.__cause__ or error).split()) or repr(error.__cause__)
            raise ConfigurationError(f"{key}: {entry[TARGET]}: {reason}") from error
    if not isinstance(entry, kind):
        raise ConfigurationError(
            f"{key} is of type {type(entry).__name__}, and has to be a "
            f"{kind.__module__}.{kind.__name__}"
        )
    return entry
