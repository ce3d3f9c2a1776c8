"""The stage that alternates: a synthesis step and a student step on what it proposed."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from omegaconf import MISSING
from torch import nn

from hast_lightning.core.batch import Progress
from hast_lightning.core.checks import require_range
from hast_lightning.core.part import part
from hast_lightning.core.source import TrainedSource
from hast_lightning.core.stage import Bench, Outcome, Stage
from hast_lightning.core.term import Term
from hast_lightning.errors import ConfigurationError
from hast_lightning.stages.distill import Distill
from hast_lightning.stages.synthesize import Synthesize


@part("stage", "alternate")
class Alternate(Stage):
    """One synthesis step and one student step in every iteration (GDFQ, Xu et al., ECCV 2020).

    A generator hands its batch on to the student; of a bank the student takes a sample.
    """

    steps: int = 79200
    """Iterations, each a step of both."""
    synthesis: Synthesize = MISSING
    """The synthesis step; its own ``steps`` do not count."""
    distillation: Distill = MISSING
    """The student step; its own ``steps`` do not count."""

    trains_student = True
    float_student = True
    several_outputs = True

    def __post_init__(self) -> None:
        require_range("steps", self.steps, 0)

    def unused(self) -> Collection[str]:
        """Return the numbers of steps of the two that take turns."""
        return ("synthesis.steps", "distillation.steps")

    @property
    def reads(self) -> tuple[str, ...]:
        """Return the name of the student's source."""
        return self.distillation.reads

    @property
    def improves(self) -> tuple[str, ...]:
        """Return the name of the source that is improved."""
        return self.synthesis.improves

    @property
    def all_terms(self) -> Mapping[str, Mapping[str, Term]]:
        """Return the terms of both steps."""
        return {**self.synthesis.all_terms, **self.distillation.all_terms}

    def bind(self, bench: Bench) -> None:
        """Bind both steps.

        Raises:
            UserError: something does not fit together.
        """
        self.synthesis.place("synthesis", f"{self.key}.synthesis")
        self.distillation.place("distillation", f"{self.key}.distillation")
        if self.synthesis.steps is not None:
            raise ConfigurationError(
                f"{self.synthesis.key}.steps={self.synthesis.steps}: both steps are done in every "
                f"iteration, as often as {self.key}.steps={self.steps} says; leave it out"
            )
        self.synthesis.bind(bench)
        self.distillation.bind(bench)
        source, seen = bench.sources[self.synthesis.source], self.distillation.batch_size
        assert isinstance(source, TrainedSource)
        key, made = self.synthesis.memory_key(bench)
        self._hands_on = source.hands_on and self.synthesis.source == self.distillation.source
        if self._hands_on and made != seen:
            raise ConfigurationError(
                f"{self.distillation.key}.batch_size={seen} differs from {key}={made}: both steps "
                "see the same batch"
            )
        self._in_distillation = False
        # Registered, so that what their parts hold moves to the device and into checkpoints.
        self._both = nn.ModuleList([self.synthesis, self.distillation])

    def length(self, bench: Bench) -> int:
        """Return the iterations."""
        return self.steps

    def begin(self, bench: Bench) -> None:
        """Prepare both steps."""
        self.synthesis.begin(bench)
        self.distillation.begin(bench)

    def step(self, bench: Bench, index: int) -> Outcome:
        """Do a step of both."""
        self._in_distillation = False
        made = self.synthesis.improve(bench, Progress(self.name, index + 1, self.steps))
        self._in_distillation = True
        proposed = made.batch if self._hands_on else None
        learned = self.distillation.train_on(bench, index, self.steps, proposed)
        scalars = {**made.scalars, **learned.scalars}
        return Outcome(scalars, {**made.parts, **learned.parts}, learned.answers, made.batch)

    def memory_key(self, bench: Bench) -> tuple[str, int]:
        """Return the setting of the step that memory was too small for."""
        step = self.distillation if self._in_distillation else self.synthesis
        return step.memory_key(bench)
