"""Runs that are compared: found by folder or pattern, and read."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # comes with OmegaConf

from hast_lightning.compare.saved import as_config, current_layout
from hast_lightning.config import Config
from hast_lightning.errors import DataError
from hast_lightning.records.failure import how_it_ended
from hast_lightning.records.folder import CONFIG_FILE, JOB_FAILURE_FILE, RESULT_FILE
from hast_lightning.records.result import Result

STUDY_FOLDER = "results"
"""Where a study keeps one JSON file a run, of any name."""


LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
LOADED = re.compile(r"(?<!\S)\S+\.load=(?!null\b)(\S+)")
"""A word of a command that names the file which samples were loaded from."""


@dataclass(frozen=True)
class FinishedRun:
    """A result, and the configuration beside it.

    Attributes:
        result: The numbers.
        saved: The configuration in the layout of today; empty where there is none.
        file: Where the result lies.
    """

    result: Result
    saved: Mapping[str, Any] = field(default_factory=dict)
    file: Path | None = None

    @property
    def name(self) -> str:
        """Return the folder of the run, or the file of a study."""
        if self.file is None:
            return "a run"
        return str(self.file.parent if self.file.name == RESULT_FILE else self.file)

    @cached_property
    def config(self) -> Config | None:
        """Return the configuration; none where there is none, or not all of it is known here."""
        return as_config(self.saved) if self.saved else None

    @property
    def loaded(self) -> str | None:
        """Return the file that samples were loaded from, if they were."""
        if not self.saved:
            named = LOADED.search(self.result.command)
            return named[1] if named else None
        sources = self.saved.get("sources")
        nodes = sources.values() if isinstance(sources, Mapping) else ()
        loads = (node.get("load") for node in nodes if isinstance(node, Mapping))
        return next((str(load) for load in loads if load), None)


def collect(names: Iterable[str | Path]) -> list[FinishedRun]:
    """Return the runs in some folders, below them, or where a pattern leads, in this order.

    A folder ``results`` may hold the JSON files of a study, named as they like.

    Raises:
        DataError: nothing is there, or a file is no result.
    """
    # A folder may be named twice, or by two paths: the first counts.
    found: dict[Path, Path] = {}
    for name in names:
        for file in _result_files(str(name)):
            found.setdefault(file.resolve(), file)
    return [_read(file) for file in found.values()]


def unfinished(names: Iterable[str | Path]) -> list[str]:
    """Return the folders of runs that left no result, each with what is known of its end."""
    places = [place for name in names for place in _places(str(name)) if place.is_dir()]
    folders = {
        file.parent
        for place in places
        for name in (CONFIG_FILE, JOB_FAILURE_FILE)
        for file in place.rglob(name)
        if not file.with_name(RESULT_FILE).exists()
        # Such as .hydra, a run's folder of Hydra's own configuration.
        and not file.parent.name.startswith(".")
        and not _is_wandbs(file)
    }
    return [f"{folder}: {how_it_ended(folder)}" for folder in sorted(folders)]


def _is_wandbs(file: Path) -> bool:
    """Return whether wandb keeps a file in a run's folder: ``wandb/<its run>/files/<name>``."""
    return file.parent.name == "files" and file.parent.parent.parent.name == "wandb"


def _places(name: str) -> list[Path]:
    """Return what a name or a pattern stands for; a folder may have a bracket in its name."""
    path = Path(name).expanduser()
    if path.exists():
        return [path]
    return [Path(place) for place in sorted(glob.glob(str(path), recursive=True))]


def _result_files(name: str) -> list[Path]:
    places = _places(name)
    if not places:
        raise DataError(f"{name} does not exist; expected runs, folders of runs, or a pattern")
    named = Path(name).expanduser().is_file()
    files = [file for place in places for file in ([place] if named else _below(place))]
    if not files:
        left = unfinished([name])
        hint = f"; {len(left)} of the runs there did not come to an end: {left[0]}" if left else ""
        raise DataError(f"{name} holds no {RESULT_FILE}{hint}")
    return files


def _below(place: Path) -> Iterator[Path]:
    """Yield the results in a folder; a file that a pattern leads to counts by its name."""
    files = [place] if place.is_file() else sorted(place.rglob("*.json"))
    return (file for file in files if _is_result(file))


def _is_result(file: Path) -> bool:
    in_study = file.suffix == ".json" and file.absolute().parent.name == STUDY_FOLDER
    # A run may have a folder of that name, too.
    in_study = in_study and not file.with_name(CONFIG_FILE).is_file()
    return file.name == RESULT_FILE or in_study


def _read(file: Path) -> FinishedRun:
    path = file.with_name(CONFIG_FILE)
    result = Result.read(file)
    if file.name != RESULT_FILE or not path.is_file():
        return FinishedRun(result, file=file)
    try:
        # A run saves plain YAML, which C reads in a fraction of OmegaConf's time.
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} cannot be read: it is no mapping of keys to values")
    return FinishedRun(result, current_layout({str(k): v for k, v in content.items()}), file)
