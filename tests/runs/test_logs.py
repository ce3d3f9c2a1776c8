from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from hast_lightning.runs.logs import tell_result
from tests.records.test_results_table import make_result

MEASURES = {
    "quantized_perplexity": "student_perplexity",
    "output_error": "error",
    "quantized_top1": "student_top1",
    "teacher_agreement": "agreement",
}


@pytest.mark.parametrize(("of_result", "logged"), MEASURES.items())
def test_loggers_are_told_all_that_the_last_evaluation_measured(
    of_result: str, logged: str
) -> None:
    logger = Mock()
    run: Any = SimpleNamespace(
        config=SimpleNamespace(
            callbacks=SimpleNamespace(evaluate_every_n_steps=0),
            logger=SimpleNamespace(artifacts=False),
        ),
        module=SimpleNamespace(iteration=8),
        origin=SimpleNamespace(resumes=0),
    )
    tell_result(run, [logger], replace(make_result((None, None, None)), **{of_result: 0.5}))  # type: ignore[arg-type]
    (metrics,), options = logger.log_metrics.call_args
    assert metrics[f"evaluation/{logged}"] == 0.5
    assert options == {"step": 7}
