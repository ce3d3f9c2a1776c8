"""The student's accuracy along the way: after calibration, and for the curve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from lightning.fabric.loggers.logger import Logger
from lightning.pytorch import Callback, LightningModule, Trainer

from hast_lightning.tracking.loggers import log_evaluation
from hast_lightning.training.evaluation import Evaluation

if TYPE_CHECKING:
    from hast_lightning.training.module import ZeroShotQuantization


class StudentEvaluation(Callback):
    """Evaluates the student when its ranges freeze, and every so many student steps.

    What is measured here is logged and reported, never acted on: no checkpoint is chosen by
    it. ``best`` exists so that the released codes' way of reporting can be shown beside the
    last step, under a name that says what it is.

    Args:
        evaluate: Measures the student as it is now; none where there is nothing to measure
            on yet.
        every_n_steps: Iterations between evaluations after the calibration; 0: none.
        labeled: Whether what it is measured on has labels. Those of synthetic images were made
            up: without others there is agreement, and no accuracy.

    Attributes:
        calibrated: The student with calibrated ranges and the teacher's weights; none of one that
            begins with new weights.
        best: The highest top-1 of the evaluations on the way; none without them or labels.
    """

    def __init__(
        self,
        evaluate: Callable[[], Evaluation | None],
        every_n_steps: int,
        labeled: bool = True,
    ) -> None:
        self._evaluate = evaluate
        self._every_n_steps = every_n_steps
        self._labeled = labeled
        self._seen_frozen = False
        self.calibrated: Evaluation | None = None
        self.best: float | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Evaluate once when the ranges have frozen, then at the interval."""
        module = cast("ZeroShotQuantization", pl_module)
        if not module.ranges_frozen:
            return
        # A new student was never calibrated: before its first step it knows nothing.
        if not self._seen_frozen and not module.float_student:
            self._seen_frozen = True
            self.calibrated = self._evaluate()
            if self.calibrated is not None:
                metrics = self._metrics(self.calibrated)
                log_evaluation(pl_module.loggers, metrics, module.iteration - 1)
            return
        if self._every_n_steps and module.progress.step % self._every_n_steps == 0:
            # At the number of the step that was just done, as its own scalars are.
            self._record(pl_module.loggers, module.iteration - 1)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, in plain numbers."""
        calibrated = None if self.calibrated is None else asdict(self.calibrated)
        return {"seen": self._seen_frozen, "calibrated": calibrated, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what the run before had measured."""
        self._seen_frozen, self.best = state_dict["seen"], state_dict["best"]
        calibrated = state_dict["calibrated"]
        self.calibrated = None if calibrated is None else Evaluation(**calibrated)

    def _record(self, loggers: Sequence[Logger], iteration: int) -> None:
        evaluation = self._evaluate()
        if evaluation is None:
            return
        if self._labeled and evaluation.student_top1 is not None:
            self.best = max(self.best or 0.0, evaluation.student_top1)
        metrics = {f"evaluation/{name}": value for name, value in self._metrics(evaluation).items()}
        for logger in loggers:
            logger.log_metrics(metrics, step=iteration)

    def _metrics(self, evaluation: Evaluation) -> dict[str, float]:
        """Return what there is to log, by name without the group."""
        known = {
            "agreement": evaluation.agreement,
            "error": evaluation.error,
            "student_perplexity": evaluation.student_perplexity,
        }
        if self._labeled:
            known["student_top1"] = evaluation.student_top1
        return {name: value for name, value in known.items() if value is not None}
