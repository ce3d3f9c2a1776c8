"""How close the student was after each stage, as the safeguard has judged it."""

from __future__ import annotations

from collections.abc import Mapping

from hast_lightning.config.safeguard import DECIDING, REFERENCE, deciding_error
from hast_lightning.records.result import Result
from hast_lightning.report.content import JudgedStage, JudgedTable

BOTH = "both"
KINDS = {
    BOTH: "reference images and leaves",
    REFERENCE: "reference images",
    "leaves": "leaves",
    "noise": "smooth noise",
    "held_out": "held-out samples",
    "evaluation": "evaluation",
}
"""Columns by the name that ``result.json`` has for their images; what decides comes first."""

NO_BREAK, NO_BREAK_HYPHEN = "\N{NO-BREAK SPACE}", "\N{NON-BREAKING HYPHEN}"


def judged_table(result: Result | None) -> JudgedTable | None:
    """Return the table; none where there was nothing to choose between."""
    if result is None or not result.judged:
        return None
    judged = {stage: _with_both(by_images) for stage, by_images in result.judged.items()}
    found = {kind for by_images in judged.values() for kind in by_images}
    kinds = [kind for kind in KINDS if kind in found]
    rows = tuple(
        JudgedStage(
            stage, stage == result.kept_stage, tuple(_cell(by_images.get(k, {})) for k in kinds)
        )
        for stage, by_images in judged.items()
    )
    decided = f"error on {KINDS[REFERENCE]}"
    if BOTH in found:
        decided = f"geometric mean of the errors on {KINDS[BOTH]}, where leaves count twice,"
    return JudgedTable(tuple(KINDS[kind] for kind in kinds), rows, decided)


def _with_both(by_images: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    """Add the error that decides where there are several kinds that do."""
    errors = {kind: by_images[kind]["error"] for kind in DECIDING if kind in by_images}
    both = {BOTH: {"error": deciding_error(errors)}} if len(errors) > 1 else {}
    return {**both, **by_images}


def _cell(measured: Mapping[str, float]) -> str:
    """Return ``0.0729, 98.4 %``: what is known of error and agreement, and top-1 with labels."""
    texts = [
        f"{measured['error']:.3g}" if "error" in measured else "",
        f"{measured['agreement']:.1f}{NO_BREAK}%" if "agreement" in measured else "",
        f"top{NO_BREAK_HYPHEN}1{NO_BREAK}{measured['top1']:.2f}{NO_BREAK}%"
        if "top1" in measured
        else "",
    ]
    return ", ".join(filter(None, texts)) or "–"
