"""One whole run for all that is asked of its page."""

from __future__ import annotations

from pathlib import Path

import pytest

from hast_lightning.records.result import Result
from hast_lightning.runs import pipeline
from tests.command_line import undisturbed_torch
from tests.small_runs import small

LONG_COMMAND = f"python -m hast_lightning recipe={'a_very_long_name_' * 12} 'and' <quotes>"


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The folder of a run with a report, and its result."""
    folder = tmp_path_factory.mktemp("reported")
    with undisturbed_torch():
        result = pipeline.run(small(), folder, LONG_COMMAND)
    assert result is not None
    return folder, result
