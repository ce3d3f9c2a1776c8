"""A stage: a stretch of the schedule with steps of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor, fx, nn
from torch.optim import Optimizer

from hast_lightning.core.batch import Answers, Batch
from hast_lightning.core.network import FEATURES, PICTURES, TOKENS, Network
from hast_lightning.core.part import Part
from hast_lightning.core.source import Source
from hast_lightning.core.term import Term


class Stepper(Protocol):
    """Named optimizers that step together; losses are ``scaled`` where float16 needs it."""

    optimizers: Mapping[str, Optimizer]
    scaled: bool

    def zero_grad(self) -> None:
        """Forget the gradients."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss``, scaled where the precision needs it."""

    def unscale(self) -> None:
        """Give the gradients their true length; once, before they are looked at."""

    def step(self) -> None:
        """Move the parameters, or leave the step out where a gradient is infinite."""

    def scalars(self, group: str) -> dict[str, float]:
        """Return the loss scale and the steps left out; empty where nothing is scaled."""
        ...


class Bench(Protocol):
    """What a stage works with: both networks, the sources, and optimizers by name.

    Attributes:
        stages: Those that run, by name and in their order.
        learner: The student as a network whose nodes can be read.
        student: The student itself, whose parameters train.
        micro_batch: Samples that go through the networks at once in a student step; none: all.
        halve_on_out_of_memory: Lower ``micro_batch`` where memory is too small, and go on.
        ranges_frozen: The student is calibrated; while stages are bound: it will be by then. One
            in floating point has nothing to calibrate.
        float_student: The student is a new network in floating point, whose BatchNorms learn.
    """

    teacher: Network
    learner: Network
    student: fx.GraphModule
    sources: Mapping[str, Source]
    stages: Mapping[str, Stage]
    micro_batch: int | None
    halve_on_out_of_memory: bool
    ranges_frozen: bool
    float_student: bool

    def stepper(self, name: str, make: Callable[[], Mapping[str, Optimizer]]) -> Stepper:
        """Return the optimizers of that name, made when they are first asked for."""
        ...

    def release(self, name: str) -> None:
        """Forget the optimizers of that name, which no later step asks for."""

    def layout(self, inputs: Tensor) -> Tensor:
        """Return ``inputs`` in the memory format of the run."""
        ...

    def freeze_ranges(self) -> None:
        """Fix the student's activation ranges, and quantize from now on."""

    def require_finite(self, loss: Tensor, what: str) -> float:
        """Return the value of a loss.

        Raises:
            DivergenceError: it is NaN or infinite.
        """
        ...


@dataclass
class Outcome:
    """What a step measured and kept; the logger, the report and the progress bar show it.

    Attributes:
        scalars: Losses and rates, by ``group/name``.
        parts: Of terms that are sums, the weighted summands, by the same name.
        answers: What the networks said in a student step to the batch ("") and to what
            transforms by gradient made of it, by their mark.
        batch: What the next step may use, detached.
        milestone: It finished something that other steps do not, such as a layer: its scalars are
            logged whatever the interval.
    """

    scalars: dict[str, Tensor | float] = field(default_factory=dict)
    parts: dict[str, tuple[Sequence[str], Tensor]] = field(default_factory=dict)
    answers: dict[str, list[Answers]] = field(default_factory=dict)
    batch: Batch | None = None
    milestone: bool = False


class Plot(NamedTuple):
    """What a stage has found, to be drawn in the report.

    Attributes:
        title: What is shown.
        x_label: Quantity and unit of the horizontal axis.
        curves: Points (x, y) in order, by the name of the curve.
    """

    title: str
    x_label: str
    curves: Mapping[str, Sequence[tuple[float, float]]]


@dataclass(eq=False, repr=False, kw_only=True)
class Stage(Part, ABC):
    """A stretch of the schedule.

    Attributes:
        name: What it is called: the group of its metrics.
        key: Where it stands in the configuration, for messages; the name of its optimizers.
        calibrates: The student's ranges are frozen when it ends.
        trains_student: Its steps change the student's parameters.
        changes_bits: The student it leaves has other bits, and is no later form of the one before.
        float_student: It knows what to do with a student that is a new network in floating point.
    """

    modalities: ClassVar[tuple[str, ...]] = (PICTURES, FEATURES, TOKENS)

    name: ClassVar[str] = ""
    key: ClassVar[str] = ""
    calibrates: ClassVar[bool] = False
    trains_student: ClassVar[bool] = False
    changes_bits: ClassVar[bool] = False
    float_student: ClassVar[bool] = False

    def place(self, name: str, key: str) -> None:
        """Tell the stage what it is called and where it stands in the configuration."""
        vars(self).update(name=name, key=key)

    @property
    def reads(self) -> tuple[str, ...]:
        """Return the names of the sources whose samples it uses."""
        return ()

    @property
    def improves(self) -> tuple[str, ...]:
        """Return the names of the sources whose samples it makes better."""
        return ()

    @property
    def all_terms(self) -> Mapping[str, Mapping[str, Term]]:
        """Return its terms by the group of metrics that they are logged in; a stage has its own."""
        return {self.name: {}}

    @abstractmethod
    def bind(self, bench: Bench) -> None:
        """Check that everything fits together, before anything is computed.

        Raises:
            UserError: it does not.
        """

    @abstractmethod
    def length(self, bench: Bench) -> int:
        """Return the number of steps; 0: there is nothing to do."""

    def begin(self, bench: Bench) -> None:
        """Prepare the first step; not called again where a run is resumed inside of the stage."""

    @abstractmethod
    def step(self, bench: Bench, index: int) -> Outcome:
        """Do one step, ``index`` from 0.

        Raises:
            FloatingPointError: something became NaN or infinite.
        """

    def end(self, bench: Bench) -> None:
        """Be told that the last step is done."""

    def student_steps(self, done: int) -> int:
        """Return how many of its first ``done`` steps train the student."""
        return done if self.trains_student else 0

    def found(self) -> str:
        """Return what it found in the networks when it was bound, for people to read."""
        return ""

    def files(self) -> Mapping[str, str]:
        """Return texts for the run folder, by the names of their files, once there are some."""
        return {}

    def plots(self) -> Sequence[Plot]:
        """Return what the report is to draw of the stage, once there is something."""
        return ()

    def memory_key(self, bench: Bench) -> tuple[str, int]:
        """Return the setting to lower where memory is too small, and the samples at once."""
        return "trainer.micro_batch", bench.micro_batch or 0


@dataclass(eq=False, repr=False, kw_only=True)
class Hook(Part, ABC):
    """Acts between the backward pass of a student step and the step itself.

    Attributes:
        float_student: It is for a student that is a new network in floating point, too.
    """

    float_student: ClassVar[bool] = False

    def bind(self, bench: Bench) -> None:
        """Check that it fits the networks, before anything is computed."""

    def groups(self, student: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the groups of parameters that the optimizer gets."""
        return groups

    @abstractmethod
    def forward(self, student: fx.GraphModule, stepper: Stepper, rate: float) -> dict[str, float]:
        """Change gradients or rates before the step; returns scalars for the log.

        Args:
            student: With its gradients, unscaled and averaged over ranks.
            stepper: Its optimizer.
            rate: Learning rate of this step.
        """
