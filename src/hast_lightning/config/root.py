"""One run, whole: all groups together, and the checks across them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from omegaconf import MISSING

from hast_lightning.config.compare import CompareConfig
from hast_lightning.config.export import ExportConfig
from hast_lightning.config.method import MethodConfig
from hast_lightning.config.model import ModelConfig
from hast_lightning.config.safeguard import SafeguardConfig
from hast_lightning.config.schedule import ScheduleConfig
from hast_lightning.config.surroundings import (
    CallbacksConfig,
    DataConfig,
    LoggerConfig,
    TrainerConfig,
)
from hast_lightning.config.unknown import did_you_mean
from hast_lightning.core.checks import expand_home, require_choice, require_range
from hast_lightning.core.ensemble import OWN
from hast_lightning.core.network import TOKENS
from hast_lightning.core.source import Source
from hast_lightning.core.stage import Stage
from hast_lightning.errors import ConfigurationError
from hast_lightning.quantization.settings import QuantizerConfig

COMMANDS = ("run", "inspect", "estimate", "methods", "predict", "compare", "dashboard")


@dataclass
class Config:
    """One run, whole.

    The groups default to missing, not to instances: OmegaConf would build the
    instances, and so run their checks, before the YAML has filled them.
    """

    recipe: str = MISSING
    """Name of the recipe, in the result and in the path of the run folder. A recipe's file says it;
    ``+experiment=...`` takes a recipe, and ``task_name`` names a run of your own."""
    command: str = "run"
    """``run`` the stages, ``inspect`` the network (a table of what would be quantized),
    ``estimate`` what the run would cost on this machine, list the ``methods``, ``predict``
    (classify ``images`` with an exported network), ``compare`` the results of ``runs``, or build
    the ``dashboard`` of the project at wandb."""
    seed: int = 0
    """Seed of every random number of the run."""
    resume: str | None = None
    """Folder of an unfinished run to go on with; it brings its own configuration."""
    modules: list[str] = field(default_factory=list)
    """Your own modules with parts, imported before the configuration is composed. They have to be
    named on the command line, also to resume a run: a file cannot have code imported."""
    artifact: str | None = None
    """``command=predict``: an exported file; it says itself what images it takes."""
    images: str | None = None
    """``command=predict``: a folder of images or of recordings, one of them, or an .npz file of
    features."""
    predictions: str | None = None
    """``command=predict``: the CSV file that is written; null: standard output."""
    # OmegaConf has no such union: what it is in words, for the reference.
    runs: Annotated[Any, "text, list (text) or null"] = None
    """Folders and patterns of runs for ``command=compare``: a path or a list of paths."""
    compare: CompareConfig = field(default_factory=CompareConfig)
    trust: list[str] = field(default_factory=list)
    """What ``_target_`` may name in ``trainer.callbacks`` and ``logger.others``. It has to be typed
    on the command line, also to resume a run: a file cannot have code run."""
    tags: list[str] = field(default_factory=list)
    """Tags of the run for loggers, beside ``logger.tags``."""
    task_name: str | None = None
    """What the run is called in results and folders, in place of its recipe."""
    model: ModelConfig = MISSING
    teachers: dict[str, ModelConfig] = field(default_factory=dict)
    """Networks that teach together with ``model``, of which the student is made, by name: each an
    option of the group ``model``, ``+model@teachers.deep=resnet56_cifar10``."""
    quantizer: QuantizerConfig = MISSING
    schedule: ScheduleConfig = MISSING
    method: MethodConfig = MISSING
    sources: dict[str, Source] = field(default_factory=dict)
    """Where batches come from, by name."""
    stages: dict[str, Stage] = field(default_factory=dict)
    """The stages that the method has, by name."""
    order: list[str] = field(default_factory=list)
    """Which of the stages run, in this order."""
    evaluate: bool = True
    """Measure the student after the last stage. Without, no file is exported."""
    report: bool = True
    """Leave report.html and a picture of samples in the run folder."""
    data: DataConfig = MISSING
    trainer: TrainerConfig = MISSING
    logger: LoggerConfig = MISSING
    callbacks: CallbacksConfig = MISSING
    safeguard: SafeguardConfig = field(default_factory=SafeguardConfig)
    export: ExportConfig = MISSING

    def __post_init__(self) -> None:
        require_choice("command", self.command, COMMANDS)
        require_range("seed", self.seed, 0, 2**32 - 1)
        self._check_teachers()
        self._check_runs()
        self._check_order()
        self._check_data()
        self._check_overlap()
        self._check_prediction()
        self._check_tokens()
        self._check_float_student()

    @property
    def ordered(self) -> dict[str, Stage]:
        """Return the stages that run, in their order."""
        return {name: self.stages[name] for name in self.order}

    @property
    def teachers_factories(self) -> dict[str, str]:
        """Return the functions that build teachers beside ``model``, by the teachers' names."""
        return {name: each.factory for name, each in self.teachers.items() if each.factory}

    @property
    def trains(self) -> bool:
        """Return whether there is a student in the end that is worth evaluating."""
        return any(stage.calibrates or stage.trains_student for stage in self.ordered.values())

    @property
    def main_source(self) -> str:
        """Return the name of the source that the last stage reads or improves."""
        for stage in reversed(self.ordered.values()):
            if names := (*stage.reads, *stage.improves):
                return names[0]
        raise ConfigurationError(f"order={self.order}: none of these stages has a source")

    def _check_order(self) -> None:
        if not self.order:
            raise ConfigurationError("order=[] names no stage: nothing would be done")
        for name in self.order:
            if name not in self.stages:
                raise ConfigurationError(
                    f"order: {name!r} is no stage of this method{did_you_mean(name, self.stages)}"
                    f"; it has: {', '.join(self.stages) or 'none'}"
                )
        if len(set(self.order)) < len(self.order):
            raise ConfigurationError(f"order={self.order} names a stage twice")
        if self.export.formats and self.trains and not self.evaluate:
            raise ConfigurationError(
                "evaluate=false with export.formats: every file is compared with the student on "
                "what it is evaluated on; choose export=none"
            )

    def _check_teachers(self) -> None:
        for name in self.teachers:
            if not isinstance(name, str) or not name.isidentifier() or name == OWN:
                raise ConfigurationError(
                    f"teachers.{name}: a name is letters, digits and underscores, and {OWN!r} is "
                    "that of the network that the student is made of"
                )

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

    def _check_prediction(self) -> None:
        for key in ("artifact", "images", "predictions"):
            value = expand_home(getattr(self, key))
            setattr(self, key, value)
            if self.command != "predict" and value is not None:
                raise ConfigurationError(f"{key}={value} is for command=predict alone")
            if self.command == "predict" and value is None and key != "predictions":
                raise ConfigurationError(
                    f"{key} is not set: command=predict artifact=<exported file> images=<folder>"
                )

    def _check_data(self) -> None:
        # Here and not in the group: only a run reads the file.
        if self.command == "run" and self.data.source == "npz" and self.data.path is None:
            raise ConfigurationError(
                "data.path is not set: point it at an .npz file with x (uint8 N,H,W,C) and y "
                "(integers), or choose data=none"
            )
        if self.command == "run" and self.data.source == "wav" and self.data.path is None:
            raise ConfigurationError(
                "data.path is not set: point it at a folder of .wav files, one folder per class, "
                "or choose data=none"
            )

    def _check_tokens(self) -> None:
        """Refuse what makes no sense of ids, before a network is loaded."""
        if self.model.modality != TOKENS:
            return
        if self.quantizer.placement.kind == "integer":
            raise ConfigurationError(
                "quantizer.placement=integer with model.modality=tokens: the scores of attention, "
                "masked with minus infinity, have no range; choose quantizer=minmax or mse"
            )
        if self.quantizer.equalize:
            raise ConfigurationError(
                "quantizer.equalize=true with model.modality=tokens: it is made for convolutions "
                "behind each other"
            )

    def _check_float_student(self) -> None:
        """Refuse what a new student in floating point has no use for, before work begins."""
        if not self.quantizer.floating:
            return
        both = "quantizer.weight_bits=32 quantizer.activation_bits=32: both in floating point"
        for name, stage in self.ordered.items():
            if not stage.float_student:
                raise ConfigurationError(
                    f"{both} is nothing to quantize, and the stage {name}, {stage.kind}, is for a "
                    "student that is quantized; give one of them 2 to 8 bits, or train a new "
                    "network, as method=coboosting does"
                )
        if self.quantizer.placement.kind == "integer" or self.quantizer.equalize:
            asked = "equalize=true" if self.quantizer.equalize else "placement=integer"
            raise ConfigurationError(
                f"{both} leaves nothing to quantizer.{asked}; choose quantizer=minmax"
            )
        if (count := self.trainer.devices * self.trainer.num_nodes) > 1:
            raise ConfigurationError(
                f"{both}: the BatchNorms of a new student learn in one process; "
                f"trainer.devices={self.trainer.devices} "
                f"trainer.num_nodes={self.trainer.num_nodes} are {count}"
            )

    def _check_overlap(self) -> None:
        """Refuse pictures to train on that the result is measured on."""
        for name, source in self.sources.items():
            path = getattr(source, "path", None)
            if path is not None and self.data.path is not None and _overlap(path, self.data.path):
                raise ConfigurationError(
                    f"sources.{name}.path={path} and data.path={self.data.path} overlap: the "
                    "result would be measured on what the student was trained on"
                )


def _overlap(first: str, second: str) -> bool:
    """Return whether two paths are the same, or one lies in the other."""
    one, other = Path(first).resolve(), Path(second).resolve()
    return one.is_relative_to(other) or other.is_relative_to(one)
