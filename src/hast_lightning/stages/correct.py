"""The stage that corrects a calibrated student without training it."""

from __future__ import annotations

from itertools import takewhile

from hast_lightning.core.checks import require_choice, require_range
from hast_lightning.core.part import part
from hast_lightning.core.stage import Bench, Outcome
from hast_lightning.errors import ConfigurationError
from hast_lightning.quantization.correction import (
    correct_biases,
    correct_by_statistics,
    give_biases,
    reestimate_batch_norms,
)
from hast_lightning.quantization.fake_quant import held_weights
from hast_lightning.stages.reading import ReadingStage, require_calibrated, require_source

BY = ("samples", "statistics")


@part("stage", "correct")
class Correct(ReadingStage):
    """Corrects BatchNorm statistics and biases of the student, from both networks' values.

    It takes a pass of both networks and no gradient: seconds. Source of bias correction: Nagel et
    al., ICCV 2019, section 4.2; BatchNorm statistics by difference are ours.
    """

    samples: int = 512
    """Samples that statistics are measured on, all at once."""
    by: str = "samples"
    """``samples``: by both networks' values; ``statistics``: by what BatchNorms say of each layer's
    inputs, which sees no sample (analytic bias correction of DFQ)."""
    batch_norms: bool = True
    """Move BatchNorm statistics by the difference that quantizing makes."""
    biases: bool = True
    """Take the mean error off the biases of layers without a BatchNorm behind them."""

    batch_key = "samples"
    # It changes the student, so that evaluations are drawn behind it.
    trains_student = True
    several_outputs = True

    def __post_init__(self) -> None:
        require_range("samples", self.samples, 2)
        require_choice("by", self.by, BY)

    def bind(self, bench: Bench) -> None:
        """Check the source, and that the student is calibrated by then.

        Raises:
            ConfigurationError: one of the two is not so, or statistics would count twice.
        """
        require_source(bench, self.source, self.key)
        require_calibrated(bench, self.name, "corrects")
        if self.biases:
            self._require_fresh_biases(bench)
            give_biases(bench.student, bench.teacher.graph_module)

    def _require_fresh_biases(self, bench: Bench) -> None:
        """Refuse to take off by statistics what a stage before has taken off biases already."""
        before = takewhile(lambda stage: stage is not self, bench.stages.values())
        names = [each.key for each in before if isinstance(each, Correct) and each.biases]
        if self.by == "statistics" and names:
            raise ConfigurationError(
                f"{self.key}.by=statistics: {names[-1]} corrects the same biases before, and their "
                f"mean error would be taken off twice; choose {self.key}.by=samples, which "
                f"measures what is left, or set {self.key}.biases=false"
            )

    def length(self, bench: Bench) -> int:
        """Return the one step."""
        return 1

    def step(self, bench: Bench, index: int) -> Outcome:
        """Correct the student on one batch."""
        if self.by == "statistics":
            found = correct_by_statistics(
                bench.student,
                bench.teacher.graph_module,
                batch_norms=self.batch_norms,
                biases=self.biases,
            )
            return Outcome({f"{self.name}/layers": float(found)})
        inputs = bench.layout(bench.sources[self.source].collect(self.samples).inputs)
        teacher, student = bench.teacher.graph_module, bench.student
        scalars: dict[str, float] = {}
        with held_weights(student):
            if self.batch_norms:
                found = reestimate_batch_norms(student, teacher, inputs)
                scalars[f"{self.name}/batch_norms"] = float(found)
            if self.biases:
                scalars[f"{self.name}/biases"] = float(correct_biases(student, teacher, inputs))
        return Outcome(dict(scalars))
