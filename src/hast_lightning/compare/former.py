"""Configurations as versions before 0.2 saved them, read in the layout of today.

Nobody rewrites those files. Their layout had two schedules of one method, with a group of keys
for each half.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Node = Mapping[str, Any]
KEPT = ("recipe", "seed", "model", "data", "trainer", "logger", "callbacks", "export")
"""Groups and keys that have stayed as they were."""
MAIN_SOURCES = {"image_bank": "bank", "images": "bank", "generator": "generator"}
"""What the source of the student's images is called today, by its kind."""


def is_former(saved: Node) -> bool:
    """Return whether a configuration has the layout of versions before 0.2."""
    return "synthesis" in saved and "stages" not in saved


def modern(saved: Node) -> dict[str, Any]:
    """Return a configuration of versions before 0.2 in the layout of today.

    Keys that it lacks stay away. The method has no name: the recipe says which one it was.
    """
    synthesis, schedule = _group(saved, "synthesis"), _group(saved, "schedule")
    kind = str(synthesis.get("source", "image_bank"))
    main = MAIN_SOURCES.get(kind, kind)
    make = {"kind": "synthesize", "source": main, **_renamed(schedule, synthesis_steps="steps")}
    make |= _synthesis_parts(synthesis)
    learn = {"kind": "distill", "source": main, **_student_parts(saved)}
    steps = _renamed(schedule, student_steps="steps")
    calibrate, calibration_source = _calibration(synthesis, schedule, main)
    stages: dict[str, Any]
    if schedule.get("name") == "alternating":
        calibrate |= {"source": main, "terms": make["terms"]}
        alternate = {"kind": "alternate", **steps, "synthesis": make, "distillation": learn}
        stages = {"calibration": calibrate, "alternation": alternate}
    else:
        stages = {} if kind == "images" else {"synthesis": make}
        stages |= {"calibration": calibrate, "distillation": {**learn, **steps}}
    return {
        **{name: saved[name] for name in KEPT if name in saved},
        "method": {"name": ""},
        "schedule": {"name": ""},
        "quantizer": _quantizer(_group(saved, "quantizer")),
        "sources": {main: _source(kind, synthesis), **calibration_source},
        "stages": stages,
        "order": list(stages),
    }


def _group(node: Node, name: str) -> Node:
    found = node.get(name)
    return found if isinstance(found, Mapping) else {}


def _renamed(node: Node, **names: str) -> dict[str, Any]:
    """Return the values that there are, by their names of today."""
    return {new: node[old] for old, new in names.items() if old in node}


def _source(kind: str, synthesis: Node) -> dict[str, Any]:
    groups = {"image_bank": "bank"}
    values = _group(synthesis, groups.get(kind, kind))
    return {"kind": kind, **_renamed(synthesis, load="load"), **values}


def _synthesis_parts(synthesis: Node) -> dict[str, Any]:
    hardness = _group(synthesis, "hardness")
    hard = _renamed(hardness, beta="weight", gamma="gamma", enabled="by_difficulty")
    return {
        "terms": {
            "bns": {"kind": "bns", **_renamed(synthesis, bns_weight="weight")},
            "hard_cross_entropy": {"kind": "hard_cross_entropy", **hard},
        },
        "transforms": {"crop_and_flip": _crop_and_flip(synthesis)},
    }


def _crop_and_flip(node: Node) -> dict[str, Any]:
    values = _group(node, "augmentation")
    return {"kind": "crop_and_flip", "enabled": bool(values.get("probability")), **values}


def _calibration(
    synthesis: Node, schedule: Node, main: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the stage, and the source that it has for itself."""
    values = _group(synthesis, "calibration")
    stage = {"kind": "calibrate", "source": main, **_renamed(schedule, calibration_steps="steps")}
    batch = _renamed(values, batch_size="batch_size")
    own = values.get("source") == "generator" and schedule.get("name") != "alternating"
    if not own:
        return {**stage, **batch}, {}
    weighted = _renamed(values, cross_entropy_weight="weight")
    terms = {
        "bns": {"kind": "bns", **_renamed(values, bns_weight="weight")},
        "cross_entropy": {"kind": "teacher_cross_entropy", **weighted},
    }
    generator = {"kind": "generator", **_group(synthesis, "generator"), **batch}
    return {**stage, **batch, "source": "calibration", "terms": terms}, {"calibration": generator}


def _student_parts(saved: Node) -> dict[str, Any]:
    node = _group(saved, "distillation")
    cross_entropy = node.get("cross_entropy_weight")
    terms = {
        "kd": {"kind": "kl", **_group(node, "kd")},
        "alignment": {"kind": "channel_attention", **_group(node, "alignment")},
    }
    if cross_entropy:
        terms["cross_entropy"] = {"kind": "cross_entropy", "weight": cross_entropy}
    return {
        **_renamed(node, batch_size="batch_size"),
        "terms": terms,
        "transforms": {
            "crop_and_flip": _crop_and_flip(node),
            "promotion": {"kind": "promotion", **_group(node, "promotion")},
        },
        "optimizer": _group(node, "optimizer"),
        "learning_rate": _group(_group(saved, "schedule"), "learning_rate"),
    }


def _quantizer(node: Node) -> dict[str, Any]:
    name = node.get("name", "minmax")
    ranges = {"kind": node.get("ranges") or "mse" if name == "deploy" else name}
    if ranges["kind"] == "percentile":
        ranges |= _renamed(node, percentile="percentile")
    if ranges["kind"] == "lsq":
        ranges |= _renamed(node, step_lr_multiplier="lr_multiplier")
    gone = ("name", "ranges", "percentile", "step_lr_multiplier")
    return {
        **{key: value for key, value in node.items() if key not in gone},
        "ranges": ranges,
        "rounding": {"kind": "nearest"},
        "placement": {"kind": "integer" if name == "deploy" else "simulated"},
    }
