"""The part of a configuration that counts: settings that were read, and switches."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import OmegaConf

from hast_lightning.compare.runs import FinishedRun
from hast_lightning.compare.saved import as_object
from hast_lightning.config import Config, config_folder
from hast_lightning.core.stage import Stage
from hast_lightning.core.term import Term
from hast_lightning.core.transform import Transform
from hast_lightning.tracking.facts import is_on, switches

Flat = Mapping[str, Any]
"""A configuration by dotted key."""

NOT_SETTINGS = (
    # What does not change the numbers, or has a column of its own.
    *("recipe", "command", "seed", "resume", "modules", "runs", "compare", "method", "report"),
    *("safeguard.enabled", "safeguard.tolerance", "tags", "task_name", "trust"),
    *("artifact", "images", "predictions", "logger", "callbacks", "export", "evaluate"),
    *("quantizer.weight_bits", "quantizer.activation_bits", "quantizer.bits"),
    *("model.checkpoint", "data.batch_size"),
    # What it says is in sources and stages, and the stages that ran are those that have steps.
    *("schedule", "order"),
    # Devices and precision stay: they change the batch and the rounding.
    *("trainer.accelerator", "trainer.timeout_minutes", "trainer.channels_last"),
    *("trainer.compile", "trainer.micro_batch", "trainer.halve_on_out_of_memory"),
    *("trainer.threads", "trainer.log_every_n_steps", "trainer.strategy"),
    *("trainer.callbacks", "trainer.arguments"),
)
NAMED_BY = {
    "quantizer": ("ranges", "rounding", "placement"),
    "data": ("source",),
}
"""Groups of which a run is told to have chosen an option, and the keys that tell which one."""


@dataclass(frozen=True)
class Counted:
    """The settings and switches of a run that count; nothing where it has no configuration.

    Attributes:
        values: Settings by dotted key; a part's kind by the key of the part, and the option of a
            group by the name of the group.
        switches: By their place in ``stages``.
        unknown: Stages that did not run since their samples were loaded. Whoever made these may
            have had other settings, so that none of such a stage counts, nor that it is missing.
    """

    values: Flat
    switches: Mapping[str, bool]
    unknown: tuple[str, ...] = ()


def counted(run: FinishedRun) -> Counted:
    """Return what counts of a run's configuration."""
    if not run.saved:
        return Counted({}, {})
    config = run.config
    if config is None:  # of parts that are not known here: all that it says
        said = dict(_flat(run.saved))
        return Counted({k: v for k, v in said.items() if not is_in(k, NOT_SETTINGS)}, {})
    ran = {
        name: stage
        for name, stage in config.ordered.items()
        if name in run.result.steps_by_stage or not run.result.steps_by_stage
    }
    values = {
        key.removesuffix(".kind"): value
        for key, value in _leaves(_used(config, ran), "")
        if not is_in(key, NOT_SETTINGS) and not key.endswith(".load")
    }
    if values.get("data.path"):
        # Other machines keep the same data elsewhere, under the same name.
        values["data.path"] = Path(str(values["data.path"])).name
    for group, keys in NAMED_BY.items():
        option = _option_of(group, tuple(values.get(f"{group}.{key}") for key in keys))
        if option is not None:
            values[group] = option
    found = {place: on for place, on in switches(config).items() if is_in(place, list(ran))}
    unknown = tuple(
        name
        for name, stage in config.ordered.items()
        if name not in ran and any(config.sources[source].load for source in stage.improves)
    )
    return Counted(values, found, unknown)


def _used(config: Config, ran: Mapping[str, Stage]) -> dict[str, Any]:
    """Return the groups of a configuration, without the stages that did nothing, and sources."""
    groups = {field.name: getattr(config, field.name) for field in fields(config)}
    names = {name for stage in ran.values() for name in (*stage.reads, *stage.improves)}
    sources = {name: source for name, source in config.sources.items() if name in names}
    return {**groups, "stages": ran, "sources": sources}


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield what is read of a part or a group of keys, without switches."""
    if isinstance(value, Term | Transform) and not is_on(value):
        return
    if isinstance(value, dict):
        children = value
    elif is_dataclass(value):
        children = {field.name: getattr(value, field.name) for field in fields(value)}
    else:
        yield key, value
        return
    unused = value.unused() if hasattr(value, "unused") else ()
    for name, child in children.items():
        if not (isinstance(value, Term | Transform) and isinstance(child, bool)):
            for place, leaf in _leaves(child, str(name)):
                if not is_in(place, unused):
                    yield f"{key}.{place}" if key else place, leaf


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, child in value.items():
            yield from _flat(child, f"{name}.{key}" if name else str(key))
    else:
        yield name.removesuffix(".kind"), value


def is_in(key: str, names: Collection[str]) -> bool:
    """Return whether a key is one of ``names`` or below one of them."""
    return any(f"{key}.".startswith(f"{name}.") for name in names)


def _option_of(group: str, told: tuple[Any, ...]) -> str | None:
    """Return the option of a group that sets the keys which tell options apart as ``told``."""
    for path in sorted((config_folder() / group).glob("*.yaml")):
        values = _option(group, path.stem)
        if tuple(values.get(f"{group}.{key}") for key in NAMED_BY[group]) == told:
            return path.stem
    return None


def implied(config: Flat, varied: Sequence[str]) -> Flat:
    """Return what the options set that are named, by key."""
    named = [group for group in NAMED_BY if group in varied and group in config]
    return {k: v for group in named for k, v in _option(group, config[group]).items()}


@cache
def _option(group: str, name: str) -> Flat:
    """Return the keys of a group as one of its options sets them."""
    schema = get_type_hints(Config)[group]
    leaves = _leaves(as_object(schema, _content(group, name)), group)
    return {key.removesuffix(".kind"): value for key, value in leaves}


def _content(group: str, name: str) -> dict[str, Any]:
    """Return the keys that the file of an option sets, and those that it is made of."""
    content: Any = OmegaConf.to_container(OmegaConf.load(config_folder() / group / f"{name}.yaml"))
    found: dict[str, Any] = {}
    for entry in content.pop("defaults", []):
        if isinstance(entry, dict):  # "override /ranges@ranges: lsq"
            ((key, kind),) = entry.items()
            found[key.rpartition("@")[2]] = {"kind": kind}
        elif entry != "_self_":
            found |= _content(group, entry)
    merged: dict[str, Any] = OmegaConf.to_container(OmegaConf.merge(found, content))  # type: ignore[assignment]
    return merged
