"""Runs that are compared: their results, and what their configurations differ in."""

from __future__ import annotations

import glob
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]  # comes with OmegaConf

from hast_lightning.errors import DataError
from hast_lightning.reporting.result import Result
from hast_lightning.run_folder import CONFIG_FILE, ORIGIN_FILE, RESULT_FILE

SWITCHES = {
    "synthesis.hardness.enabled": "hardness",
    "distillation.promotion.enabled": "promotion",
    "distillation.alignment.enabled": "alignment",
}
"""The parts of the method that an ablation switches, in the order of the paper's table."""
# Of the trainer's settings those that change speed and not results.
HARMLESS = (
    *("accelerator", "threads", "log_every_n_steps", "compile", "channels_last"),
    *("micro_batch", "halve_on_out_of_memory", "timeout_minutes"),
)
# What does not change the numbers, or has a column of its own.
NOT_SETTINGS = (
    *("recipe", "command", "seed", "resume", "runs", "run", "compare", "logger", "callbacks"),
    *(f"trainer.{name}" for name in HARMLESS),
    *("export", "model.checkpoint", "data.path", "data.batch_size"),
    *("synthesis.load", "quantizer.weight_bits", "quantizer.activation_bits", "quantizer.bits"),
)


@dataclass(frozen=True)
class FinishedRun:
    """A result, and the flat configuration beside it; an empty one where there is none."""

    result: Result
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def basis(self) -> dict[str, Any]:
        """Whose numbers can be ranked: of the same weights, measured on as many such images."""
        result = self.result
        return {
            "weights": result.model_checksum[:8],
            "measured on": result.agreement_on,
            "images": result.evaluated_images,
        }

    @property
    def settings(self) -> dict[str, Any]:
        """By dotted key or by name, all that makes it another experiment than a run of its recipe.

        Beside the configuration and the basis: whether the samples are its own (not whose: seeds
        that load a bank each are still seeds of one experiment).
        """
        result, facts = self.result, self.basis
        if not self.config:
            steps = ("synthesis_steps", "calibration_steps", "student_steps")
            return facts | {name: getattr(result, name) for name in steps}
        facts["samples"] = "loaded" if self.config.get("synthesis.load") else "own"
        known = {key: value for key, value in self.config.items() if not _is_no_setting(key)}
        return known | facts


def collect(names: Iterable[str | Path]) -> list[FinishedRun]:
    """The runs in some folders, below them, or where a pattern leads.

    A folder without any ``result.json`` may hold the JSON files of a study instead.

    Raises:
        DataError: nothing is there, or a file is no result.
    """
    files = [file for name in names for file in _result_files(str(name))]
    return [_read(file) for file in dict.fromkeys(files)]


def _result_files(name: str) -> list[Path]:
    places = _places(name)
    if not places:
        raise DataError(f"{name} does not exist; expected runs, folders of runs, or a pattern")
    files = [file for place in places for file in _below(Path(place))]
    if not files:
        raise DataError(f"{name} holds no {RESULT_FILE}")
    return files


def _places(name: str) -> list[str]:
    return sorted(glob.glob(str(Path(name).expanduser()), recursive=True))


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


def _is_no_setting(key: str) -> bool:
    return any(f"{key}.".startswith(f"{name}.") for name in NOT_SETTINGS)


def varied(runs: Sequence[FinishedRun]) -> list[str]:
    """The settings, by key, in which runs differ.

    One that some do not know may differ in others: runs of an older version do not know every
    key of a newer one. What comes along with an option of a group, and never without it, goes
    without saying beside the option's name.
    """
    settings = [run.settings for run in runs]
    values: dict[str, set[str]] = defaultdict(set)
    for known in settings:
        for key, value in known.items():
            values[key].add(repr(value))
    keys = sorted(key for key, found in values.items() if len(found) > 1)
    return [key for key in keys if not _comes_along(key, keys, settings)]


def _comes_along(key: str, keys: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> bool:
    name = f"{key.rpartition('.')[0]}.name"
    if name == key or name not in keys:
        return False
    pairs = {(repr(known.get(name)), repr(known.get(key))) for known in settings}
    return len(pairs) == len({option for option, _ in pairs})


def describe(run: FinishedRun, keys: Sequence[str]) -> str:
    """The values of ``keys`` but for the switches: ``alignment.weight=10, samples=loaded``."""
    settings = run.settings
    shown = [key for key in keys if key not in SWITCHES and key in settings]
    return ", ".join(f"{_short(key)}={settings[key]}" for key in shown)


def parts(run: FinishedRun) -> tuple[str, ...] | None:
    """The parts of the method that are on; none where nothing is known of them."""
    if not SWITCHES.keys() & run.config.keys():
        return None
    return tuple(name for key, name in SWITCHES.items() if run.config.get(key))


def without_result(names: Iterable[str | Path]) -> list[Path]:
    """Folders of runs without a result: failed, not ended, or only meant to make samples."""
    places = [Path(place) for name in names for place in _places(str(name))]
    folders = {file.parent for place in places for file in place.rglob(ORIGIN_FILE)}
    return sorted(folder for folder in folders if not (folder / RESULT_FILE).is_file())


def _short(key: str) -> str:
    return ".".join(key.split(".")[-2:])
