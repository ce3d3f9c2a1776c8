"""Which student the present judge hands back, of those that a result has measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hast_lightning.config.safeguard import DECIDING, SafeguardConfig, deciding_error
from hast_lightning.safeguard.choice import preferred


def handed_back_now(result: Mapping[str, Any]) -> str:
    """Return the stage of that student, which may be another than when the run was made."""
    errors = {
        stage: deciding_error({k: found[k]["error"] for k in DECIDING if k in found})
        for stage, found in result["judged"].items()
    }
    stage: str = result["kept_stage"]
    return preferred(errors, SafeguardConfig().tolerance) if errors else stage
