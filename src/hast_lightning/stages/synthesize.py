"""The stage that makes images: a source is improved against the teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field

from omegaconf import MISSING
from torch import nn

from hast_lightning.core.batch import Needs, Progress
from hast_lightning.core.checks import require_range
from hast_lightning.core.part import part
from hast_lightning.core.source import TrainedSource
from hast_lightning.core.stage import Bench, Outcome, Stage
from hast_lightning.core.term import Term
from hast_lightning.core.transform import Transform
from hast_lightning.errors import ConfigurationError
from hast_lightning.runtime.ranks import average_gradients
from hast_lightning.stages.loss import (
    active_terms,
    bind_terms,
    bind_transforms,
    see,
    transformed,
    weighted_loss,
)
from hast_lightning.stages.reading import require_source


@part("stage", "synthesize")
class Synthesize(Stage):
    """Improves the samples of a source against the teacher, one step of its optimizers a step."""

    source: str = MISSING
    """Name of the source, one that has parameters."""
    steps: int | None = None
    """Steps; null: as many as the source needs until every sample was made once."""
    terms: dict[str, Term] = field(default_factory=dict)
    """What the samples are improved for."""
    transforms: dict[str, Transform] = field(default_factory=dict)
    """What changes the samples before the networks see them."""

    float_student = True
    several_outputs = True

    def __post_init__(self) -> None:
        if self.steps is not None:
            require_range("steps", self.steps, 1)

    @property
    def improves(self) -> tuple[str, ...]:
        """Return the name of the source."""
        return (self.source,)

    @property
    def all_terms(self) -> Mapping[str, Mapping[str, Term]]:
        """Return the terms that count."""
        return {self.name: active_terms(self.terms)}

    def bind(self, bench: Bench) -> None:
        """Check the source, and what the terms need.

        Raises:
            UserError: there is no such source, it has nothing to improve, or a term does not fit.
        """
        self._source = trained_source(bench, self.source, self.key)
        self._terms = active_terms(self.terms)
        if not self._terms:
            raise ConfigurationError(
                f"{self.key}.terms: none has a weight, so nothing is improved for"
            )
        self._transforms = bind_transforms(self.transforms, bench.teacher, bench.learner, self.key)
        key = f"{self.key}.terms"
        self._needs = bind_terms(
            self._terms, bench.teacher, bench.learner, bench.sources[self.source], key
        )
        if self._needs.student is not None and not bench.ranges_frozen:
            raise ConfigurationError(
                f"{key}: a term looks at the student, which no stage has calibrated yet"
            )
        # Registered, so that what they hold moves to the device and into checkpoints.
        self._parts = nn.ModuleList([*self._terms.values(), *self._transforms.values()])

    def length(self, bench: Bench) -> int:
        """Return the steps; none for a source that was read from a file.

        Raises:
            ConfigurationError: the source has no natural end, and no steps are set.
        """
        if self._source[0].filled_by_loading:
            return 0
        steps = self._source[0].steps_to_fill if self.steps is None else self.steps
        if steps is None:
            raise ConfigurationError(
                f"{self.key}.steps is not set: a {self._source[0].kind} has no natural "
                "end; say how many steps it gets"
            )
        return steps

    def step(self, bench: Bench, index: int) -> Outcome:
        """Improve one batch."""
        return self.improve(bench, Progress(self.name, index + 1, self.length(bench)))

    def improve(self, bench: Bench, progress: Progress) -> Outcome:
        """Improve one batch, which the outcome hands on as it was before the step."""
        source = self._source[0]
        stepper = bench.stepper(f"sources.{self.source}", source.optimizers)
        batch = source.propose()
        shown = transformed(batch, self._transforms)
        shown = shown._replace(inputs=bench.layout(shown.inputs))
        needs = self._needs
        learner = None if needs.student is None else bench.learner
        with still(bench.student, needs):
            seen = see(shown, needs, bench.teacher, learner, progress)
            loss = weighted_loss(self._terms, seen)
            value = bench.require_finite(loss.total, self.name)
            stepper.zero_grad()
            stepper.backward(loss.total)
        if source.shared:
            average_gradients(source.parameters())
        stepper.step()
        scaling = stepper.scalars(self.name)
        finished = source.improved(value, stepper.optimizers)
        if finished is not None:
            for term in self._terms.values():
                term.finished(finished)
        scalars = {f"{self.name}/{term}": part for term, part in loss.values.items()}
        parts = {f"{self.name}/{term}": part for term, part in loss.parts.items()}
        return Outcome({**scalars, **scaling}, parts, batch=batch.detach())

    def memory_key(self, bench: Bench) -> tuple[str, int]:
        """Return the batch size of the source."""
        source = self._source[0]
        return f"sources.{self.source}.{source.batch_key}", getattr(source, source.batch_key)


def trained_source(bench: Bench, name: str, key: str) -> tuple[TrainedSource]:
    """Return a source that has parameters, in a tuple, so that no stage registers it.

    Raises:
        ConfigurationError: there is no such source, or it has nothing to improve.
    """
    require_source(bench, name, key)
    source = bench.sources[name]
    if not isinstance(source, TrainedSource):
        raise ConfigurationError(
            f"{key}.source={name}: a source of kind {source.kind} has nothing to improve; leave "
            "the stage out of order"
        )
    return (source,)


@contextmanager
def still(student: nn.Module, needs: Needs) -> Iterator[None]:
    """Keep gradients away from the student's parameters while it is only looked at."""
    trained = [] if needs.student is None else [p for p in student.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
