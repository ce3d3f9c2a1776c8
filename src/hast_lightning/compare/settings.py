"""Differences of the runs of a recipe: the settings that count, and the parts that are switched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hast_lightning.compare.counted import Counted, Flat, counted, implied, is_in
from hast_lightning.compare.runs import FinishedRun

FACTS = ("model_checksum", "evaluated_images", "agreement_on")
"""What a result says itself of its run, beside its steps: for runs without a configuration and
for files, of which the configuration has only the path."""
LOADED = "samples=loaded"
"""Said of a run that does not say how its samples were made, where others do."""


@dataclass(frozen=True)
class Settings:
    """Settings and switches that tell a run from the others of its recipe.

    Attributes:
        switches: Those that not all runs have alike, and whether each is on; without those of
            stages of which it is not known, since the samples were loaded.
        quantizer: Settings of the quantizer, as ``quantizer=lsq``.
        others: All others, as ``kd.weight=20.0``.
    """

    switches: tuple[tuple[str, bool], ...] = ()
    quantizer: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join(self.words)

    @property
    def words(self) -> tuple[str, ...]:
        """Return all of them, the switches as one."""
        return (*self.switched, *self.quantizer, *self.others)

    @property
    def on(self) -> tuple[str, ...]:
        """Return the switches that are on."""
        return tuple(name for name, on in self.switches if on)

    @property
    def switched(self) -> tuple[str, ...]:
        """Return the switches in one word, none where there are none."""
        if not self.switches:
            return ()
        names = ", ".join(name for name, _ in self.switches)
        return (" + ".join(self.on) or f"without {names}",)

    @property
    def beside_quantizer(self) -> str:
        """Return all but the quantizer's, for plots of one quantizer."""
        return ", ".join((*self.switched, *self.others))


def distinguish(runs: Sequence[FinishedRun]) -> list[Settings]:
    """Return what each of the runs of one recipe on one network differs in from the others."""
    found = _by_configuration([counted(run) for run in runs])
    facts = [_facts(run) for run in runs]
    for fact in dict.fromkeys(name for each in facts for name in each):
        if _are_mixed(runs, found, [each.get(fact) for each in facts]):
            found = [
                replace(settings, others=(*settings.others, f"{fact}={each[fact]}"))
                if fact in each
                else settings
                for settings, each in zip(found, facts, strict=True)
            ]
    return _with_samples(runs, found)


def _by_configuration(found: Sequence[Counted]) -> list[Settings]:
    known = [each for each in found if each.values]
    varied = _varied([each.values for each in known])
    flipped = _flipped(known)
    short, named = _short_names(varied, least=2), _short_names(flipped, least=1)
    return [
        _with_switches(_words(each.values, varied, short), each, named)
        if each.values
        else Settings()
        for each in found
    ]


def _with_switches(words: Settings, run: Counted, named: Mapping[str, str]) -> Settings:
    """Add the switches of ``named`` that are known of a run, and that others are not."""
    known = [key for key in named if not is_in(key, run.unknown)]
    loaded = () if len(known) == len(named) else (LOADED,)
    return replace(
        words,
        switches=tuple((named[key], run.switches.get(key, False)) for key in known),
        others=(*words.others, *loaded),
    )


def _varied(configs: Sequence[Flat]) -> list[str]:
    """Return the keys in which configurations differ that have them."""
    keys = sorted({key for config in configs for key in config})
    return [
        key for key in keys if len({repr(config[key]) for config in configs if key in config}) > 1
    ]


def _flipped(found: Sequence[Counted]) -> list[str]:
    """Return the switches that are not alike in all; one that a run does not have is off.

    Unless its stage is one of those that nothing is known of: the images were loaded.
    """
    keys = dict.fromkeys(key for each in found for key in each.switches)
    return [
        key
        for key in keys
        if len({e.switches.get(key, False) for e in found if not is_in(key, e.unknown)}) > 1
    ]


def _words(config: Flat, varied: Sequence[str], short: Mapping[str, str]) -> Settings:
    unsaid = implied(config, varied)
    words = {
        key: f"{short[key]}={_shown(config[key])}"
        for key in varied
        if key in config and (key not in unsaid or config[key] != unsaid[key])
    }
    of_quantizer = {key: word for key, word in words.items() if is_in(key, ("quantizer",))}
    others = tuple(word for key, word in words.items() if key not in of_quantizer)
    return Settings(quantizer=tuple(of_quantizer.values()), others=others)


def _short_names(keys: Sequence[str], least: int) -> dict[str, str]:
    """Return the end of each key that is no other's, of at least so many parts."""
    return {key: _short_name(key, keys, least) for key in keys}


def _short_name(key: str, keys: Sequence[str], least: int) -> str:
    parts = key.split(".")
    ends = (".".join(parts[-count:]) for count in range(min(least, len(parts)), len(parts)))
    return next((end for end in ends if sum(_ends_with(k, end) for k in keys) == 1), key)


def _ends_with(key: str, end: str) -> bool:
    return f".{key}".endswith(f".{end}")


def _shown(value: Any) -> str:
    """Return a value as it is typed on the command line."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _facts(run: FinishedRun) -> dict[str, str]:
    """Return what a result says of its run; steps of the stages that did some."""
    result = run.result
    steps = {f"{stage}.steps": str(count) for stage, count in result.steps_by_stage.items()}
    others = {name: str(getattr(result, name)) for name in FACTS}
    return {**steps, **others, "model_checksum": result.model_checksum[:8]}


def _are_mixed(
    runs: Sequence[FinishedRun], found: Sequence[Settings], values: Sequence[str | None]
) -> bool:
    """Return whether runs that look the same so far differ in one of the values."""
    seen: dict[object, set[str]] = defaultdict(set)
    for run, settings, value in zip(runs, found, values, strict=True):
        if value is not None:
            seen[_place(run, settings)].add(value)
    return any(len(each) > 1 for each in seen.values())


def _place(run: FinishedRun, settings: Settings) -> object:
    return run.result.weight_bits, run.result.activation_bits, settings


def _with_samples(runs: Sequence[FinishedRun], found: Sequence[Settings]) -> list[Settings]:
    """Tell runs of one seed apart that trained on other samples.

    Seeds may load the samples of a run each, and are still seeds of one experiment.
    """
    loaded: dict[object, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for run, settings in zip(runs, found, strict=True):
        loaded[_place(run, settings)][run.result.seed].add(_samples(run))
    mixed = {
        place for place, seeds in loaded.items() if any(len(names) > 1 for names in seeds.values())
    }
    return [
        replace(
            settings,
            others=(*(w for w in settings.others if w != LOADED), f"samples={_samples(run)}"),
        )
        if _place(run, settings) in mixed
        else settings
        for run, settings in zip(runs, found, strict=True)
    ]


def _samples(run: FinishedRun) -> str:
    """Return whose samples the student learned from: the run's own, or the end of their path."""
    return "/".join(Path(run.loaded).parts[-2:]) if run.loaded else "own"
