"""The configuration beside a result, as the parts that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin

from hast_lightning.compare.former import is_former, modern
from hast_lightning.config import Config
from hast_lightning.config.building import hints_of, import_parts
from hast_lightning.core.part import Part, group_of, part_class
from hast_lightning.errors import UserError

UNREADABLE = (UserError, KeyError, TypeError, ValueError, AttributeError)
"""What comes of a key or part that this version does not have, and of values that do not fit."""


def current_layout(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a saved configuration in the layout of today, whatever version saved it."""
    return modern(saved) if is_former(saved) else saved


def as_config(saved: Mapping[str, Any]) -> Config | None:
    """Return a configuration in the layout of today as an object.

    It is only looked at, so that the types of values are not checked, unlike those of a run that
    is resumed.

    Returns:
        None where it has something that this version does not know, such as parts of a module
        that was not imported.
    """
    import_parts()
    try:
        found: Config = as_object(Config, saved)
    except UNREADABLE:
        return None
    return found


def as_object(hint: Any, value: Any) -> Any:
    """Return a value as what its type says; parts as the class that their ``kind`` names."""
    arguments = get_args(hint)
    if isinstance(value, list) and get_origin(hint) is list:
        return [as_object(arguments[0], entry) for entry in value]
    if not isinstance(value, Mapping):
        return value
    if get_origin(hint) is dict:
        return {str(name): as_object(arguments[1], entry) for name, entry in value.items()}
    schema: Any = next((each for each in (hint, *arguments) if is_dataclass(each)), None)
    if schema is None:  # any value may be there, a mapping among them
        return dict(value)
    if issubclass(schema, Part):
        schema = part_class(group_of(schema), str(value["kind"]))
    hints = hints_of(schema)
    return schema(**{name: as_object(hints[name], entry) for name, entry in value.items()})
