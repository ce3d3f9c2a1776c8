"""Name, tags and settings of a run where many are shown together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hast_lightning.config import Config
from hast_lightning.core.stage import Stage
from hast_lightning.core.term import Term
from hast_lightning.core.transform import Transform

MAX_TAG = 64
"""Characters of a tag that wandb takes."""


@dataclass(frozen=True)
class Description:
    """Name, group, tags and settings, by which a run is found among others.

    Attributes:
        name: Of this run.
        group: Runs of one group are shown together.
        tags: What to filter by.
        settings: The resolved configuration, with switches and origin.
    """

    name: str
    group: str
    tags: tuple[str, ...]
    settings: dict[str, Any]


def describe(
    config: Config, folder: Path, origin: Mapping[str, Any], teacher_checksum: str
) -> Description:
    """Describe a run.

    Args:
        config: Its configuration.
        folder: Its folder, which gives it the second half of its name.
        origin: ``command``, ``git_commit`` and ``versions`` that the run is made by.
        teacher_checksum: SHA-256 of the full-precision network's weights.
    """
    facts = {
        # A dot would be read as a group of keys.
        "switches": {place.replace(".", "/"): on for place, on in switches(config).items()},
        "git_commit": origin["git_commit"],
        "command_line": origin["command"],
        "versions": dict(origin["versions"]),
        "teacher_checksum": teacher_checksum,
        "folder": str(folder),
    }
    return Description(
        name=config.logger.run_name or f"{config.recipe}/{folder.name}",
        group=config.logger.group or config.recipe,
        tags=_tags(config),
        settings={**asdict(config), **facts},
    )


def switches(config: Config) -> dict[str, bool]:
    """Return the switches of the terms and transforms of the stages that run, by their place.

    A part is itself a switch, by its place in ``stages``; a setting of it that is true or false is
    another one. Of a part that is off none is on.
    """
    found = {}
    for place, part in switched_parts(config):
        found[place] = is_on(part)
        for field in fields(part):
            value = getattr(part, field.name)
            if isinstance(value, bool) and field.name != "enabled":
                found[f"{place}.{field.name}"] = is_on(part) and value
    return found


def is_on(part: Term | Transform) -> bool:
    """Return whether a part does something: it is enabled, and a term has a weight."""
    return part.active if isinstance(part, Term) else part.enabled


def switched_parts(config: Config) -> Iterator[tuple[str, Term | Transform]]:
    """Yield the terms and transforms of the stages that run, with their place in ``stages``."""
    for place, stage in running_stages(config):
        for key, part in parts_of(stage):
            yield f"{place}.{key}", part


def parts_of(stage: Stage) -> Iterator[tuple[str, Term | Transform]]:
    """Yield the terms and transforms of one stage, with their place in it."""
    for field in fields(stage):
        value = getattr(stage, field.name)
        for name, part in value.items() if isinstance(value, dict) else ():
            if isinstance(part, Term | Transform):
                yield f"{field.name}.{name}", part


def running_stages(config: Config) -> Iterator[tuple[str, Stage]]:
    """Yield the stages that run and those that take turns in them, with their place."""
    for name, stage in config.ordered.items():
        yield from _with_nested(stage, name)


def _with_nested(stage: Stage, place: str) -> Iterator[tuple[str, Stage]]:
    yield place, stage
    for field in fields(stage):
        value = getattr(stage, field.name)
        if isinstance(value, Stage):
            yield from _with_nested(value, f"{place}.{field.name}")


def _tags(config: Config) -> tuple[str, ...]:
    """Return the user's own tags first, then what one usually filters by."""
    quantizer = config.quantizer
    found = (
        *config.logger.tags,
        config.recipe,
        config.method.name,
        config.model.name,
        quantizer.widths.short,
        quantizer.name,
    )
    return tuple(dict.fromkeys(tag[:MAX_TAG] for tag in found if tag))
