"""Runs that are compared: their results, and what their configurations differ in."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]  # comes with OmegaConf

from hast_lightning.errors import DataError
from hast_lightning.reporting.result import Result
from hast_lightning.run_folder import CONFIG_FILE, RESULT_FILE

SWITCHES = {
    "synthesis.hardness.enabled": "hardness",
    "distillation.promotion.enabled": "promotion",
    "distillation.alignment.enabled": "alignment",
}
"""The parts of the method that an ablation switches, in the order of the paper's table."""
# What does not change the numbers, or has a column of its own.
NOT_SETTINGS = (
    *("recipe", "command", "seed", "resume", "runs", "run", "compare", "trainer", "logger"),
    *("callbacks", "export", "model.checkpoint", "data.path", "data.batch_size"),
    *("synthesis.load", "quantizer.weight_bits", "quantizer.activation_bits", "quantizer.bits"),
)


@dataclass(frozen=True)
class FinishedRun:
    """A result, and the flat configuration beside it; an empty one where there is none."""

    result: Result
    config: Mapping[str, Any] = field(default_factory=dict)


def collect(names: Iterable[str | Path]) -> list[FinishedRun]:
    """The runs in some folders, below them, or where a pattern leads.

    A folder without any ``result.json`` may hold the JSON files of a study instead.

    Raises:
        DataError: nothing is there, or a file is no result.
    """
    files = [file for name in names for file in _result_files(str(name))]
    return [_read(file) for file in dict.fromkeys(files)]


def _result_files(name: str) -> list[Path]:
    places = sorted(glob.glob(str(Path(name).expanduser()), recursive=True))
    if not places:
        raise DataError(f"{name} does not exist; expected runs, folders of runs, or a pattern")
    files = [file for place in places for file in _below(Path(place))]
    if not files:
        raise DataError(f"{name} holds no {RESULT_FILE}")
    return files


def _below(place: Path) -> Iterator[Path]:
    if place.is_file():
        return iter([place] if place.suffix == ".json" else [])
    return iter(sorted(place.rglob(RESULT_FILE)) or sorted(place.rglob("results/*.json")))


def _read(file: Path) -> FinishedRun:
    path = file.with_name(CONFIG_FILE)
    result = Result.read(file)
    if not path.is_file():
        return FinishedRun(result)
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (OmegaConfBaseException, YAMLError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    return FinishedRun(result, dict(_flat(content)))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from _flat(child, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def varied(runs: Sequence[FinishedRun]) -> list[str]:
    """The settings, by dotted key, in which runs differ that all know them."""
    shared = set.intersection(*(set(run.config) for run in runs)) if runs else set()
    return sorted(
        key
        for key in shared
        if not any(f"{key}.".startswith(f"{name}.") for name in NOT_SETTINGS)
        and len({repr(run.config[key]) for run in runs}) > 1
    )


def describe(config: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The values of ``keys`` in a few words: ``hardness + promotion, alignment.weight=10``."""
    switches = [key for key in SWITCHES if key in keys]
    words = []
    if switches:
        words.append(" + ".join(SWITCHES[key] for key in switches if config[key]) or "none")
    words += [f"{_short(key)}={config[key]}" for key in keys if key not in SWITCHES]
    return ", ".join(words)


def _short(key: str) -> str:
    return ".".join(key.split(".")[-2:])
