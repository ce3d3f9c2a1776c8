"""What runs of a recipe differ in: the settings that count, and the parts that are switched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import OmegaConf

from hast_lightning.compare.runs import FinishedRun
from hast_lightning.config import Config, config_folder

Flat = Mapping[str, Any]
"""A configuration by dotted key."""

PARTS: dict[str, tuple[str, str]] = {
    "hardness": ("synthesis.hardness.enabled", "synthesis.hardness.gamma"),
    "promotion": ("distillation.promotion.enabled", "distillation.promotion.eps"),
    "alignment": ("distillation.alignment.enabled", "distillation.alignment.weight"),
}
"""The parts of the method that an ablation switches, in the order of the paper's table: the
switch, and the number that leaves nothing of the part where it is zero."""
NO_PARTS = "none"
DATA_PATH = "data.path"
SAMPLES = "synthesis.load"

# What does not change the numbers, or has a column of its own.
NOT_SETTINGS = (
    *("recipe", "command", "seed", "resume", "runs", "run", "compare", "logger", "callbacks"),
    *("artifact", "images", "predictions", "export", "model.checkpoint", "data.batch_size"),
    "synthesis.load",
    *("quantizer.weight_bits", "quantizer.activation_bits", "quantizer.bits"),
    # Devices and precision stay: they change the batch and the rounding.
    *("trainer.accelerator", "trainer.timeout_minutes", "trainer.channels_last"),
    *("trainer.compile", "trainer.micro_batch", "trainer.halve_on_out_of_memory"),
    *("trainer.threads", "trainer.log_every_n_steps"),
)


def _off(key: str) -> Callable[[Flat], bool]:
    return lambda config: not config.get(key)


def _other_than(value: str, *keys: str) -> Callable[[Flat], bool]:
    return lambda config: value not in [config.get(key) for key in keys]


_RANGES = ("quantizer.name", "quantizer.ranges")
# Keys, and what is below them, that nothing reads where the condition holds: runs that differ in
# them alone are the same run.
IDLE: dict[str, Callable[[Flat], bool]] = {
    "synthesis.bank": _other_than("image_bank", "synthesis.source"),
    "synthesis.images": _other_than("images", "synthesis.source"),
    "synthesis.hardness": lambda config: config.get("synthesis.source") == "images",
    "synthesis.bns_weight": lambda config: config.get("synthesis.source") == "images",
    "synthesis.generator": _other_than(
        "generator", "synthesis.source", "synthesis.calibration.source"
    ),
    "synthesis.calibration.cross_entropy_weight": _other_than(
        "generator", "synthesis.calibration.source"
    ),
    "synthesis.calibration.bns_weight": _other_than("generator", "synthesis.calibration.source"),
    "synthesis.augmentation.min_scale": _off("synthesis.augmentation.probability"),
    "synthesis.augmentation.max_scale": _off("synthesis.augmentation.probability"),
    "synthesis.augmentation.flip": _off("synthesis.augmentation.probability"),
    "synthesis.hardness.gamma": _off("synthesis.hardness.enabled"),
    "distillation.promotion.eps": _off("distillation.promotion.enabled"),
    "distillation.alignment.weight": _off("distillation.alignment.enabled"),
    "distillation.kd.temperature": _off("distillation.kd.weight"),
    "distillation.kd.reduction": _off("distillation.kd.weight"),
    "distillation.augmentation.min_scale": _off("distillation.augmentation.probability"),
    "distillation.augmentation.max_scale": _off("distillation.augmentation.probability"),
    "distillation.augmentation.flip": _off("distillation.augmentation.probability"),
    "distillation.optimizer.momentum": _other_than("sgd", "distillation.optimizer.name"),
    "quantizer.ranges": _other_than("deploy", "quantizer.name"),
    "quantizer.percentile": _other_than("percentile", *_RANGES),
    "quantizer.step_lr_multiplier": _other_than("lsq", *_RANGES),
    "schedule.learning_rate.milestones": _other_than("multistep", "schedule.learning_rate.policy"),
    "schedule.learning_rate.factor": _other_than("multistep", "schedule.learning_rate.policy"),
}
# Groups whose option is told by one of their keys: what the option sets needs no words beside it.
PRESETS = {"quantizer": "quantizer.name", "data": "data.source"}
# What a result says itself of its run, for runs without a configuration and for files, of which
# the configuration has only the path.
FACTS = (
    *("synthesis_steps", "calibration_steps", "student_steps"),
    *("model_checksum", "evaluated_images", "agreement_on"),
)


@dataclass(frozen=True)
class Settings:
    """What tells a run from the others of its recipe.

    Attributes:
        parts: Those of the method that were on; none where they are the same in all runs.
        quantizer: Settings of the quantizer, as ``name=lsq``.
        others: All others, as ``kd.weight=20.0``.
    """

    parts: tuple[str, ...] | None = None
    quantizer: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join((*self.switched, *self.quantizer, *self.others))

    @property
    def switched(self) -> tuple[str, ...]:
        """The parts in one word; empty where none were switched."""
        return () if self.parts is None else (" + ".join(self.parts) or NO_PARTS,)

    @property
    def beside_quantizer(self) -> str:
        """All but the quantizer's, for plots of one quantizer."""
        return ", ".join((*self.switched, *self.others))


def distinguish(runs: Sequence[FinishedRun]) -> list[Settings]:
    """What each of the runs of one recipe on one network differs in from the others."""
    counting = [_counting(run.config) for run in runs]
    varied = _varied([config for config in counting if config])
    found = [_settings(config, varied) if config else Settings() for config in counting]
    for fact in FACTS:
        if _are_mixed(runs, found, fact):
            found = [
                replace(settings, others=(*settings.others, _fact(run, fact)))
                for run, settings in zip(runs, found, strict=True)
            ]
    return _with_samples(runs, found)


def _with_samples(runs: Sequence[FinishedRun], found: Sequence[Settings]) -> list[Settings]:
    """Tell runs of one seed apart that trained on other samples.

    Seeds may load the samples of a run each, and are still seeds of one experiment.
    """
    loaded: dict[object, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    places = []
    for run, settings in zip(runs, found, strict=True):
        place = (run.result.weight_bits, run.result.activation_bits, settings)
        places.append(place)
        loaded[place][run.result.seed].add(_samples(run))
    mixed = {
        place for place, seeds in loaded.items() if any(len(names) > 1 for names in seeds.values())
    }
    return [
        replace(settings, others=(*settings.others, f"samples={_samples(run)}"))
        if place in mixed
        else settings
        for run, settings, place in zip(runs, found, places, strict=True)
    ]


def _samples(run: FinishedRun) -> str:
    """The run's own, or those of another: the last two parts of their path."""
    path = run.config.get(SAMPLES)
    return "/".join(Path(str(path)).parts[-2:]) if path else "own"


def quantizer_of(config: Flat) -> str:
    """The name of a run's quantizer; empty where the run has no configuration."""
    return str(config.get("quantizer.name", ""))


def _counting(config: Flat) -> Flat:
    """The settings that something reads, with the defaults of keys that older versions lack."""
    if not config:
        return {}
    whole = {**_defaults(), **config}
    if whole.get(DATA_PATH):
        # Other machines keep the same data elsewhere, under the same name.
        whole[DATA_PATH] = Path(str(whole[DATA_PATH])).name
    idle = [*NOT_SETTINGS, *(key for key, holds in IDLE.items() if holds(whole))]
    return {key: value for key, value in whole.items() if not _is_in(key, idle)}


def _is_in(key: str, names: Sequence[str]) -> bool:
    return any(f"{key}.".startswith(f"{name}.") for name in names)


@cache
def _defaults() -> dict[str, Any]:
    return dict(_schema_defaults(Config))


def _schema_defaults(schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(schema)
    for entry in fields(schema):
        hint, name = hints[entry.name], f"{prefix}{entry.name}"
        if is_dataclass(hint):
            yield from _schema_defaults(hint, f"{name}.")  # type: ignore[arg-type]
        elif entry.default_factory is not NO_DEFAULT:
            yield name, entry.default_factory()
        elif entry.default is not NO_DEFAULT:
            yield name, entry.default


def _varied(configs: Sequence[Flat]) -> list[str]:
    """The keys in which configurations differ; one that a schema no longer has is not compared."""
    keys = sorted({key for config in configs for key in config})
    known = _defaults().keys() | (set.intersection(*map(set, configs)) if configs else set())
    return [
        key
        for key in keys
        if key in known and len({repr(config[key]) for config in configs if key in config}) > 1
    ]


def _settings(config: Flat, varied: Sequence[str]) -> Settings:
    switches = [switch for switch, _ in PARTS.values()]
    implied = _implied(config, varied)
    words = {
        key: f"{_short(key)}={_shown(config[key])}"
        for key in varied
        if key in config and (key not in implied or config[key] != implied[key])
    }
    return Settings(
        _parts(config) if set(switches) & set(varied) else None,
        tuple(text for key, text in words.items() if key.startswith("quantizer.")),
        tuple(
            text
            for key, text in words.items()
            if not key.startswith("quantizer.") and key not in switches
        ),
    )


def _implied(config: Flat, varied: Sequence[str]) -> Flat:
    """What the options that are named set, by key."""
    names = {group: config.get(key) for group, key in PRESETS.items() if key in varied}
    return {
        f"{group}.{key}": value
        for group, name in names.items()
        for key, value in _option(group, str(name)).items()
        if f"{group}.{key}" not in PRESETS.values()
    }


@cache
def _option(group: str, name: str) -> dict[str, Any]:
    """The keys of a group as one of its options sets them; empty where there is no such option."""
    path = config_folder() / group / f"{name}.yaml"
    if not path.is_file():
        return {}
    prefix = f"{group}."
    found = {
        key.removeprefix(prefix): value
        for key, value in _defaults().items()
        if key.startswith(prefix)
    }
    content: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[assignment]
    for entry in content.pop("defaults", []):
        found |= {} if entry == "_self_" else _option(group, entry)
    return found | content


def _parts(config: Flat) -> tuple[str, ...]:
    """All parts that were on, also those that no run went without."""
    return tuple(name for name, keys in PARTS.items() if all(config.get(key) for key in keys))


def _short(key: str) -> str:
    return ".".join(key.split(".")[-2:])


def _shown(value: Any) -> str:
    """As it is typed on the command line."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _are_mixed(runs: Sequence[FinishedRun], found: Sequence[Settings], fact: str) -> bool:
    """Whether runs that look the same so far differ in a fact."""
    seen: dict[tuple[int, int, Settings], set[Any]] = defaultdict(set)
    for run, settings in zip(runs, found, strict=True):
        bits = run.result.weight_bits, run.result.activation_bits
        value = getattr(run.result, fact)
        # Images that were loaded took no steps.
        if fact != "synthesis_steps" or value:
            seen[(*bits, settings)].add(value)
    return any(len(values) > 1 for values in seen.values())


def _fact(run: FinishedRun, fact: str) -> str:
    value = getattr(run.result, fact)
    return f"{fact}={str(value)[:8] if fact == 'model_checksum' else value}"
