"""The student's accuracy along the way: after calibration, and for the curve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from hast_lightning.evaluation import Evaluation


class StudentEvaluation(Callback):
    """Evaluates the student when its ranges freeze, and every so many student steps.

    What is measured here is logged and reported, never acted on: no checkpoint is chosen by
    it. ``best`` exists so that the released codes' way of reporting can be shown beside the
    last step, under a name that says what it is.

    Args:
        evaluate: Measures the student as it is now; none where there is nothing to measure
            on yet.
        every_n_steps: Iterations between evaluations after the calibration; 0: none.

    Attributes:
        calibrated: The student with calibrated ranges and the teacher's weights.
        best: The highest top-1 of the evaluations on the way; none without them.
    """

    def __init__(self, evaluate: Callable[[], Evaluation | None], every_n_steps: int) -> None:
        self._evaluate = evaluate
        self._every_n_steps = every_n_steps
        self._seen_frozen = False
        self.calibrated: Evaluation | None = None
        self.best: float | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Evaluate once when the ranges have frozen, then at the interval."""
        if not pl_module.ranges_frozen:
            return
        if not self._seen_frozen:
            self._seen_frozen = True
            self.calibrated = self._evaluate()
            return
        step = pl_module.progress.step
        if self._every_n_steps and step % self._every_n_steps == 0:
            self._record(pl_module)

    def _record(self, pl_module: LightningModule) -> None:
        evaluation = self._evaluate()
        if evaluation is None:
            return
        self.best = max(self.best or 0.0, evaluation.student_top1)
        metrics = {
            "evaluation/student_top1": evaluation.student_top1,
            "evaluation/agreement": evaluation.agreement,
        }
        for logger in pl_module.loggers:
            logger.log_metrics(metrics, step=pl_module.iteration)
