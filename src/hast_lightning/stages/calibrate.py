"""The stage that calibrates: the student's activation ranges observe batches and are frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

import torch

from hast_lightning.core.batch import Progress
from hast_lightning.core.checks import require_range
from hast_lightning.core.network import MODALITIES
from hast_lightning.core.part import part
from hast_lightning.core.source import TrainedSource
from hast_lightning.core.stage import Bench, Outcome
from hast_lightning.core.term import Term
from hast_lightning.core.transform import Transform
from hast_lightning.quantization.fake_quant import (
    ActivationMode,
    activation_quantizers,
    held_weights,
    set_activation_mode,
)
from hast_lightning.stages.loss import active_terms
from hast_lightning.stages.reading import ReadingStage, require_source
from hast_lightning.stages.synthesize import Synthesize


@part("stage", "calibrate")
class Calibrate(ReadingStage):
    """Lets the student's activation ranges observe batches; they are frozen when it ends.

    A student whose activations stay in floating point has none: the stage is then one empty step,
    unless it improves a source that another stage has, too.

    With terms, the source is improved by a step before each observation: released HAST calibrates
    on the images of a generator that is trained meanwhile, and GDFQ warms its generator up so.
    """

    steps: int = 800
    """Steps, each of one batch."""
    batch_size: int = 16
    """Samples of a step; a generator that is improved meanwhile shows what it has just made."""
    terms: dict[str, Term] = field(default_factory=dict)
    """What the source is improved for meanwhile; none: it stays as it is."""
    transforms: dict[str, Transform] = field(default_factory=dict)
    """What changes the samples before the teacher sees them, where the source is improved."""

    calibrates = True
    modalities = MODALITIES
    several_outputs = True

    def __post_init__(self) -> None:
        require_range("steps", self.steps, 1)
        require_range("batch_size", self.batch_size, 1)
        self._observes, self._idle = True, False

    @property
    def improves(self) -> tuple[str, ...]:
        """Return the name of the source where there are terms."""
        return (self.source,) if active_terms(self.terms) and not self._idle else ()

    @property
    def all_terms(self) -> Mapping[str, Mapping[str, Term]]:
        """Return the terms that count."""
        return {self.name: active_terms(self.terms) if self.improves else {}}

    def bind(self, bench: Bench) -> None:
        """Check the source, and the terms where there are some.

        Raises:
            UserError: there is no such source, or a term does not fit.
        """
        require_source(bench, self.source, self.key)
        self._observes = bool(activation_quantizers(bench.student))
        others = [stage for stage in bench.stages.values() if stage is not self]
        shared = any(self.source in (*stage.reads, *stage.improves) for stage in others)
        self._idle = not self._observes and not (self.improves and shared)
        self._synthesis: Synthesize | None = None
        if self.improves:
            synthesis = Synthesize(
                source=self.source, steps=self.steps, terms=self.terms, transforms=self.transforms
            )
            synthesis.place(self.name, self.key)
            synthesis.bind(bench)
            self._synthesis = synthesis

    def length(self, bench: Bench) -> int:
        """Return the steps; one where there is nothing to do in them."""
        return 1 if self._idle else self.steps

    def begin(self, bench: Bench) -> None:
        """Forget what was observed before: the student has changed since an earlier calibration."""
        for quantizer in activation_quantizers(bench.student):
            quantizer.moving_range.forget()

    def step(self, bench: Bench, index: int) -> Outcome:
        """Observe one batch, of a source that may be improved first."""
        outcome = Outcome()
        if self._synthesis is not None:
            outcome = self._synthesis.improve(bench, Progress(self.name, index + 1, self.steps))
        if not self._observes:
            return outcome
        source, batch = bench.sources[self.source], outcome.batch
        if batch is None or not (isinstance(source, TrainedSource) and source.hands_on):
            batch = source.sample(self.batch_size)
        set_activation_mode(bench.student, ActivationMode.OBSERVE)
        with torch.no_grad(), held_weights(bench.student):
            bench.student(bench.layout(batch.inputs))
        # What others show the student before the next step, as an evaluation does, counts nothing.
        between = ActivationMode.QUANTIZE if bench.ranges_frozen else ActivationMode.FLOAT
        set_activation_mode(bench.student, between)
        return outcome

    def end(self, bench: Bench) -> None:
        """Freeze the ranges."""
        bench.freeze_ranges()

    def memory_key(self, bench: Bench) -> tuple[str, int]:
        """Return the batch size of the stage, or of the source that it improves."""
        if self._synthesis is not None:
            return self._synthesis.memory_key(bench)
        return super().memory_key(bench)
