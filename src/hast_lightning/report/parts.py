"""Parts in words: what each is and how it is set, from its own docstring and fields."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from hast_lightning.core.part import Part
from hast_lightning.core.stage import Stage
from hast_lightning.core.term import Term
from hast_lightning.core.transform import Transform
from hast_lightning.report.content import PartLine, StageLines
from hast_lightning.runs.assembly import Run
from hast_lightning.tracking.facts import is_on, parts_of, running_stages

SAID_BESIDE = ("kind", "enabled", "weight", "source", "steps")
"""Settings that have a place of their own."""
MARKUP = re.compile(r":\w+:(?=`)|`+")


def about(part: Part) -> str:
    """Return what a part is: the first paragraph of its docstring, without markup."""
    return MARKUP.sub("", part.summary())


def settings_of(node: Any) -> str:
    """Return the settings of a part or a group of keys that are read, in one line."""
    own = ", ".join(_own_settings(node))
    groups = [
        f"{_words(name)}: {_group(value)}"
        for name, value in _values(node)
        if is_dataclass(value) and not isinstance(value, Stage)
    ]
    return "; ".join(filter(None, [own, *groups]))


def _values(node: Any) -> Iterator[tuple[str, Any]]:
    unused = node.unused() if hasattr(node, "unused") else ()
    for field in fields(node):
        if field.name not in (*SAID_BESIDE, *unused):
            yield field.name, getattr(node, field.name)


def _own_settings(node: Any) -> Iterator[str]:
    for name, value in _values(node):
        if isinstance(value, bool):
            yield _words(name) if value else f"not {_words(name)}"
        elif isinstance(value, list) and value and all(isinstance(v, int | float) for v in value):
            yield f"{_words(name)} {'/'.join(map(_number, value))}"
        elif isinstance(value, int | float | str) and value != "":
            yield f"{_words(name)} {_number(value)}"


def _group(value: Any) -> str:
    if isinstance(value, Part):
        found = settings_of(value)
        return f"{about(value)}{f' ({found})' if found else ''}"
    # The first key of a group says what the others are about: adam, cosine.
    first, *others = _own_settings(value)
    return ", ".join([first.partition(" ")[2] or first, *others])


def _words(name: str) -> str:
    return " ".join("learning rate" if word == "lr" else word for word in name.split("_"))


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def stage_lines(run: Run) -> tuple[StageLines, ...]:
    """Return the stages that run, and those that take turns in them, with their parts."""
    return tuple(
        StageLines(
            name=place.replace(".", ", "),
            steps=run.module.agenda.stages.get(place, 0) if "." not in place else None,
            source=getattr(stage, "source", ""),
            about=about(stage),
            settings=settings_of(stage),
            parts=tuple(_part_lines(stage, f"stages.{place}")),
        )
        for place, stage in running_stages(run.config)
    )


def _part_lines(stage: Stage, key: str) -> Iterator[PartLine]:
    for place, part in parts_of(stage):
        yield PartLine(
            name=_title(part),
            about=about(part),
            enabled=is_on(part),
            weight=_number(part.weight) if isinstance(part, Term) else "",
            settings=settings_of(part),
            key=f"{key}.{place}",
        )


def _title(part: Term | Transform) -> str:
    return getattr(part, "title", "") or part.kind.replace("_", " ").capitalize()
