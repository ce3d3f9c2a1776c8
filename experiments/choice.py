"""Which student the present judge hands back, of those that a result has measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hast_lightning.config.safeguard import SafeguardConfig
from hast_lightning.safeguard.choice import preferred
from hast_lightning.safeguard.closeness import Closeness


def handed_back_now(result: Mapping[str, Any]) -> str:
    """Return the stage of that student, which may be another than when the run was made."""
    judged = {
        stage: {kind: Closeness(**each) for kind, each in found.items() if kind != "evaluation"}
        for stage, found in result["judged"].items()
    }
    return preferred(judged, SafeguardConfig().tolerance)
