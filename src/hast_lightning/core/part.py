"""Parts: one class is the schema of its settings, their documentation and the computation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, TypeVar, dataclass_transform

from torch import nn

from hast_lightning.core.network import FEATURES, PICTURES
from hast_lightning.errors import ConfigurationError

P = TypeVar("P", bound="Part")
_PARTS: dict[str, dict[str, type[Part]]] = {}


@dataclass(eq=False, repr=False, kw_only=True)
class Part(nn.Module):
    """A dataclass whose fields are settings, and a module that may have state.

    ``__post_init__`` checks the settings. What a part holds in parameters, buffers and extra state
    is in every checkpoint.

    Attributes:
        modalities: Of the networks (``model.modality``) that it knows what to do with.
        several_outputs: It knows what to do with a network that puts out several tensors.
    """

    kind: str = ""
    """Name of the part within its group, from which a saved configuration is read again."""

    modalities: ClassVar[tuple[str, ...]] = (PICTURES, FEATURES)
    several_outputs: ClassVar[bool] = False

    def __new__(cls, *args: Any, **kwargs: Any) -> Part:
        """Make a module before the generated ``__init__`` sets the fields."""
        instance = super().__new__(cls)
        nn.Module.__init__(instance)
        return instance

    def __setattr__(self, name: str, value: Any) -> None:
        """Keep fields plain: a part in a field is a setting, which ``nn.Module`` would register."""
        if name in _settings(type(self)):  # type: ignore[arg-type]  # a class is hashable
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def unused(self) -> Collection[str]:
        """Return the settings that nothing reads, as the others are; runs may differ in them."""
        return ()

    @classmethod
    def summary(cls) -> str:
        """Return the first paragraph of the docstring, in one line."""
        return " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())


@cache
def _settings(cls: Any) -> frozenset[str]:
    """Return the names of a part's settings; what is annotated as of the class is none."""
    return frozenset(each.name for each in fields(cls))


@dataclass_transform(eq_default=False, kw_only_default=True, field_specifiers=(field,))
def part(group: str, name: str) -> Callable[[type[P]], type[P]]:
    """Make a class a part: a dataclass that YAML names as ``name`` of ``group``.

    Args:
        group: ``term``, ``source``, ``transform``, ``stage``, ``hook``, or one of the quantizer's
            axes ``ranges``, ``rounding`` and ``placement``.
        name: In YAML, and the value of ``kind``.

    Raises:
        ConfigurationError: another class has that name, the class is of another group, or it lacks
            what its base class asks for.
    """

    def register(cls: type[P]) -> type[P]:
        # A direct subclass of Part begins a group of its own.
        if Part not in cls.__bases__ and group != group_of(cls):
            raise ConfigurationError(
                f"{group}={name}: {_place(cls)} is of the group {group_of(cls)}, as its base says"
            )
        if missing := sorted(getattr(cls, "__abstractmethods__", ())):
            raise ConfigurationError(
                f"{group}={name}: {_place(cls)} does not define {', '.join(missing)}"
            )
        cls.__annotations__ = {**inspect.get_annotations(cls), "kind": "str"}
        cls.kind = name
        made = dataclass(eq=False, repr=False, kw_only=True)(cls)
        known = _PARTS.setdefault(group, {}).get(name)
        if known is not None and _place(known) != _place(made):
            raise ConfigurationError(
                f"{group}={name} is the name of two parts: {_place(known)} and {_place(made)}"
            )
        _PARTS[group][name] = made
        return made

    return register


def group_of(cls: type[Part]) -> str:
    """Return the group of a part's class, or of the base class of some: its name in lower case."""
    return next(c for c in cls.__mro__ if Part in c.__bases__).__name__.lower()


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def parts() -> Mapping[str, Mapping[str, type[Part]]]:
    """Return the classes that were imported so far, by group and name."""
    return _PARTS


def part_class(group: str, name: str) -> type[Part]:
    """Return the class of a part.

    Raises:
        ConfigurationError: no module that was imported has it.
    """
    found = _PARTS.get(group, {}).get(name)
    if found is None:
        raise ConfigurationError(
            f"{group}={name} is no part that is known here; if it is one of your own, name its "
            f"module: modules=[package.module]. Known: {', '.join(sorted(_PARTS.get(group, {})))}"
        )
    return found
