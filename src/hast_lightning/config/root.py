"""One run, whole: all groups together, and the checks across them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hast_lightning.config.checks import expand_home, require_choice, require_range
from hast_lightning.config.compare import CompareConfig
from hast_lightning.config.distillation import DistillationConfig
from hast_lightning.config.export import ExportConfig
from hast_lightning.config.model import ModelConfig
from hast_lightning.config.quantizer import QuantizerConfig
from hast_lightning.config.schedule import ScheduleConfig
from hast_lightning.config.surroundings import (
    CallbacksConfig,
    DataConfig,
    LoggerConfig,
    TrainerConfig,
)
from hast_lightning.config.synthesis import SynthesisConfig
from hast_lightning.errors import ConfigurationError

COMMANDS = ("run", "inspect", "predict", "compare", "dashboard")
STAGES = ("synthesize", "distill", "evaluate", "export", "report")


@dataclass
class Config:
    """One run, whole.

    The groups default to missing, not to instances: OmegaConf would build the
    instances, and so run their checks, before the YAML has filled them.
    """

    recipe: str = MISSING
    """Name of the recipe, in the result and in the path of the run folder."""
    command: str = "run"
    """``run`` the agenda, ``inspect`` the network (a table of what would be quantized),
    ``predict`` (classify ``images`` with an exported network), ``compare`` the results of
    ``runs``, or build the ``dashboard`` of the project at wandb."""
    seed: int = 0
    """Seed of every random number of the run."""
    run: list[str] = field(default_factory=lambda: list(STAGES))
    """The agenda: which of the stages run, always in their natural order."""
    resume: str | None = None
    """Folder of an unfinished run to go on with; it brings its own configuration."""
    artefact: str | None = None
    """``command=predict``: an exported file; it says itself what images it takes."""
    images: str | None = None
    """``command=predict``: a folder of images, or one of them."""
    predictions: str | None = None
    """``command=predict``: the CSV file that is written; none: standard output."""
    # OmegaConf has no such union: what it is in words, for the reference.
    runs: Annotated[Any, "text, list (text) or null"] = None
    """Folders and patterns of runs for ``command=compare``: a path or a list of paths."""
    compare: CompareConfig = field(default_factory=CompareConfig)
    model: ModelConfig = MISSING
    quantizer: QuantizerConfig = MISSING
    schedule: ScheduleConfig = MISSING
    synthesis: SynthesisConfig = MISSING
    distillation: DistillationConfig = MISSING
    data: DataConfig = MISSING
    trainer: TrainerConfig = MISSING
    logger: LoggerConfig = MISSING
    callbacks: CallbacksConfig = MISSING
    export: ExportConfig = MISSING

    def __post_init__(self) -> None:
        require_choice("command", self.command, COMMANDS)
        require_range("seed", self.seed, 0, 2**32 - 1)
        for stage in self.run:
            require_choice("run", stage, STAGES)
        self._check_runs()
        self._check_agenda()
        self._check_source_and_schedule()
        self._check_images()
        self._check_batches()
        self._check_data()
        self._check_prediction()

    def _check_runs(self) -> None:
        named = [self.runs] if isinstance(self.runs, str) else self.runs or []
        if not isinstance(named, list) or not all(isinstance(name, str) and name for name in named):
            raise ConfigurationError(f"runs={self.runs!r} is neither a path nor a list of paths")
        if bool(named) != (self.command == "compare"):
            raise ConfigurationError(
                f"command={self.command} runs={named}: command=compare needs runs=<folder> or "
                "runs=[<folder>,<folder>], and no other command takes them"
            )
        self.runs = named

    def _check_agenda(self) -> None:
        if not {"synthesize", "distill"} & set(self.run):
            raise ConfigurationError(
                f"run={list(self.run)} has neither synthesize nor distill: nothing would be done"
            )
        given = self.synthesis.load is not None or self.synthesis.source == "images"
        if "synthesize" not in self.run and not given:
            raise ConfigurationError(
                f"run={list(self.run)} has no synthesize and synthesis.load is not set: there "
                "would be no images to train on"
            )
        if "synthesize" in self.run and "distill" not in self.run and given:
            what = (
                "synthesis.source=images"
                if self.synthesis.source == "images"
                else f"synthesis.load={self.synthesis.load}"
            )
            raise ConfigurationError(
                f"run={list(self.run)} with {what}: nothing would be done; the samples are there "
                "already"
            )

        alternating = self.schedule.name == "alternating" and "distill" in self.run
        if alternating and "synthesize" not in self.run:
            raise ConfigurationError(
                f"run={list(self.run)}: schedule.name=alternating synthesizes in every "
                "iteration; add synthesize, or choose schedule=two_stage"
            )

        lacking = [stage for stage in ("distill", "evaluate") if stage not in self.run]
        if "export" in self.run and lacking:
            raise ConfigurationError(
                f"run={list(self.run)}: export needs {' and '.join(lacking)}; every file is "
                "compared with the trained student, and result.json says how they agree"
            )

    def _check_prediction(self) -> None:
        for key in ("artefact", "images", "predictions"):
            value = expand_home(getattr(self, key))
            setattr(self, key, value)
            if self.command != "predict" and value is not None:
                raise ConfigurationError(f"{key}={value} is for command=predict alone")
            if self.command == "predict" and value is None and key != "predictions":
                raise ConfigurationError(
                    f"{key} is not set: command=predict artefact=<exported file> images=<folder>"
                )

    def _check_data(self) -> None:
        # Here and not in the group: only a run reads the file.
        if self.command == "run" and self.data.source == "npz" and self.data.path is None:
            raise ConfigurationError(
                "data.path is not set: point it at an .npz file with x (uint8 N,H,W,C) and y "
                "(integers), or choose data=none"
            )

    def _check_batches(self) -> None:
        """What the generator has just made is what the student sees: one batch size for both."""
        made, seen = self.synthesis.generator.batch_size, self.distillation.batch_size
        shared = self.schedule.name == "alternating" and self.synthesis.source == "generator"
        if shared and made != seen:
            raise ConfigurationError(
                f"distillation.batch_size={seen} differs from synthesis.generator.batch_size="
                f"{made}: with schedule.name=alternating both steps see the same batch"
            )

    def _check_images(self) -> None:
        """Pictures are there already, and are not those that the result is measured on."""
        path = self.synthesis.images.path
        if self.synthesis.source != "images":
            return
        if self.schedule.name == "alternating":
            raise ConfigurationError(
                "synthesis.source=images with schedule.name=alternating: there is nothing to "
                "synthesize in every iteration; choose schedule=two_stage"
            )
        if self.schedule.synthesis_steps is not None:
            raise ConfigurationError(
                f"schedule.synthesis_steps={self.schedule.synthesis_steps} with "
                "synthesis.source=images: there is nothing to synthesize; leave it out"
            )
        if self.command == "run" and path is None:
            raise ConfigurationError(
                "synthesis.images.path is not set: point it at a folder of pictures or an .npz "
                "file with x (uint8 N,H,W,C)"
            )
        if path is not None and self.data.path is not None and _overlap(path, self.data.path):
            raise ConfigurationError(
                f"synthesis.images.path={path} and data.path={self.data.path} overlap: the result "
                "would be measured on what the student was trained on"
            )

    def _check_source_and_schedule(self) -> None:
        # Without distill there is nothing to alternate with: only the synthesis is planned.
        stage_of_its_own = self.schedule.name == "two_stage" or "distill" not in self.run
        endless = self.schedule.synthesis_steps is None and self.synthesis.load is None
        if self.synthesis.source == "generator" and stage_of_its_own and endless:
            raise ConfigurationError(
                "schedule.synthesis_steps is not set: a generator has no natural end; say how "
                "many steps it gets before the student starts"
            )


def _overlap(first: str, second: str) -> bool:
    """Whether two paths are the same, or one lies in the other."""
    one, other = Path(first).resolve(), Path(second).resolve()
    return one.is_relative_to(other) or other.is_relative_to(one)


def register_schemas() -> None:
    """Make the root schema known to Hydra as ``schema``, and the two resolvers; idempotent."""
    OmegaConf.register_new_resolver("first", _first, replace=True)
    OmegaConf.register_new_resolver("folder_of_command", _folder_of_command, replace=True)
    ConfigStore.instance().store(name="schema", node=Config)


def _folder_of_command(command: str) -> str | None:
    """The folder of a command that writes nothing, for which Hydra would make a new one."""
    return None if command == "run" else "."


def _first(*values: Any) -> Any:
    """The first of the values that is set."""
    return next((value for value in values if value is not None), None)


def to_object(config: DictConfig) -> Config:
    """Resolve the composed configuration and run every check.

    Raises:
        ConfigurationError: a value is missing, of the wrong type or out of range.
    """
    _refuse_added_keys(config)
    try:
        result: Any = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise ConfigurationError(str(error).splitlines()[0]) from error
    assert isinstance(result, Config)
    return result


def _refuse_added_keys(group: DictConfig, prefix: str = "") -> None:
    """Refuse what the schema does not have: Hydra's ``+key=value`` adds it all the same."""
    schema = OmegaConf.get_type(group)
    assert schema is not None
    known = {field.name for field in fields(schema)}
    for key in map(str, group):
        if key not in known:
            raise ConfigurationError(_no_such_key(prefix, key, known))
        _refuse_value_for_group(group, key, f"{prefix}{key}")
        if not OmegaConf.is_missing(group, key) and isinstance(group[key], DictConfig):
            _refuse_added_keys(group[key], f"{prefix}{key}.")


def _refuse_value_for_group(group: DictConfig, key: str, name: str) -> None:
    """Refuse an interpolation that puts a value where a group of keys belongs."""
    schema: Any = get_type_hints(OmegaConf.get_type(group))[key]
    if not is_dataclass(schema) or OmegaConf.is_missing(group, key):
        return
    try:
        value = group[key]
    except OmegaConfBaseException as error:
        raise ConfigurationError(str(error).splitlines()[0]) from error
    if OmegaConf.get_type(value) is not schema:
        raise ConfigurationError(
            f"{name}={value!r} is not a group of keys; {name} has: "
            f"{', '.join(sorted(field.name for field in fields(schema)))}"
        )


def describe_unknown_key(key: str) -> str | None:
    """What to say of a dotted ``key`` that the schema does not have; none where it has it."""
    schema: Any = Config
    prefix = ""
    for name in key.split("."):
        known = get_type_hints(schema) if is_dataclass(schema) else {}
        if name not in known:
            return _no_such_key(prefix, name, known)
        schema = known[name]
        prefix = f"{prefix}{name}."
    return None


def describe_unknown_key_of_entry(schema: str, key: str) -> str | None:
    """The same of a ``key`` in an entry of a list; none where no list has entries of ``schema``.

    Args:
        schema: Name of the entries' dataclass, which is what OmegaConf tells in place of the list.
        key: As it was written.
    """
    for name, entry in _lists_of_groups(Config):
        if entry.__name__ == schema:
            known = ", ".join(sorted(field.name for field in fields(entry)))
            return f"{name}: {key} is no key of an entry; an entry has: {known}"
    return None


def _lists_of_groups(schema: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that holds a list of groups of keys, with the dataclass of its entries."""
    for name, hint in get_type_hints(schema).items():
        if is_dataclass(hint):
            yield from _lists_of_groups(hint, f"{prefix}{name}.")
        elif get_origin(hint) is list and is_dataclass(get_args(hint)[0]):
            yield f"{prefix}{name}", get_args(hint)[0]


def _no_such_key(prefix: str, key: str, known: Collection[str]) -> str:
    group = prefix.rstrip(".") or "the root"
    return (
        f"{prefix}{key} is no key of the configuration; {group} has: "
        f"{', '.join(sorted(known)) or 'a value and no keys'}"
    )
